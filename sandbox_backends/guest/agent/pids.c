/* How many processes may be started inside: a control group that no path in the sandbox leads to. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine.h"

#define GROUPS "/groups"
#define GROUP GROUPS "/sandbox"

static void write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        machine_fail("limiting processes: %s: %s", path, strerror(errno));
    close(fd);
}

int machine_limit_pids(uint32_t pids) {
    char number[16];
    if (pids == 0)
        return -1;
    mkdir(GROUPS, 0755);
    if (mount("cgroup2", GROUPS, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        machine_fail("limiting processes: mounting control groups: %s", strerror(errno));
    write_text(GROUPS "/cgroup.subtree_control", "+pids");
    if (mkdir(GROUP, 0755) < 0)
        machine_fail("limiting processes: making a control group: %s", strerror(errno));
    snprintf(number, sizeof number, "%u", pids);
    write_text(GROUP "/pids.max", number);
    int fd = open(GROUP "/cgroup.procs", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        machine_fail("limiting processes: opening the control group: %s", strerror(errno));
    return fd;
}
