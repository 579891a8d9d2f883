/* /proc, /sys, /dev, …: what does not come from the image. The image is not trusted: it may hold whatever it likes at
 * these places. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "machine.h"

static const char HOSTS[] = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

static const struct {
    const char *path, *type, *options;
    unsigned long flags;
    mode_t mode;
} MOUNTS[] = {
    {"/proc", "proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, 0555},
    {"/sys", "sysfs", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, 0555},
    {"/dev", "tmpfs", "mode=0755,size=1m", MS_NOSUID | MS_NOEXEC, 0755},
    {"/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5", MS_NOSUID | MS_NOEXEC, 0755},
    {"/dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV | MS_NOEXEC, 01777},
    {"/run", "tmpfs", "mode=0755", MS_NOSUID | MS_NODEV, 0755},
    {"/tmp", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV, 01777},
};

/* Only these: the link and the disks have no nodes here, and what is started inside can make none. */
static const struct {
    const char *path;
    unsigned major, minor;
} NODES[] = {
    {"/dev/null", 1, 3}, {"/dev/zero", 1, 5},    {"/dev/full", 1, 7},
    {"/dev/tty", 5, 0},  {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9},
};

static const char *const LINKS[][2] = {
    {"/proc/self/fd", "/dev/fd"},         {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"},
};

/* Written before they become read-only; kernels differ in which they have. */
static const char *const SETTINGS[][2] = {
    {"/proc/sys/kernel/modules_disabled", "1"},
    {"/proc/sys/kernel/modprobe", "\n"},
    {"/proc/sys/kernel/core_pattern", "core"},
    {"/proc/sys/kernel/usermodehelper/bset", "0 0"}, /* what the kernel starts is looked up in the image */
    {"/proc/sys/kernel/usermodehelper/inheritable", "0 0"},
    {"/proc/sys/kernel/kexec_load_disabled", "1"},
    {"/proc/sys/user/max_user_namespaces", "0"},
    {"/proc/sys/kernel/unprivileged_bpf_disabled", "1"},
};

/* The kernel guards these by user id, whatever capabilities a process lacks. */
static const char *const FROZEN[] = {"/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/scsi", "/proc/acpi"};
static const char *const HIDDEN[] = {
    "/proc/kcore",       "/proc/keys",        "/proc/kmsg",          "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags",
    "/proc/sched_debug", "/proc/latency_stats", "/proc/sysrq-trigger", "/proc/timer_list",  "/proc/vmcore",
};

#define COUNT(table) (sizeof(table) / sizeof *(table))

static void make_folder(const char *path, mode_t mode) {
    struct stat found;
    if (lstat(path, &found) == 0 && !S_ISDIR(found.st_mode))
        unlink(path);
    if (mkdir(path, mode) < 0 && errno != EEXIST)
        machine_fail("making %s in the sandbox: %s", path, strerror(errno));
}

static bool write_file(const char *path, int flags, const char *text) {
    int fd = open(path, O_WRONLY | O_NOFOLLOW | O_CLOEXEC | flags, 0644);
    if (fd < 0)
        return false;
    bool done = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    return close(fd) == 0 && done;
}

static void make_devices(void) {
    for (size_t i = 0; i < COUNT(NODES); i++)
        if (mknod(NODES[i].path, S_IFCHR | 0666, makedev(NODES[i].major, NODES[i].minor)) < 0)
            machine_fail("making %s: %s", NODES[i].path, strerror(errno));
    for (size_t i = 0; i < COUNT(LINKS); i++)
        if (symlink(LINKS[i][0], LINKS[i][1]) < 0)
            machine_fail("making %s: %s", LINKS[i][1], strerror(errno));
}

static void guard_proc(void) {
    const unsigned long flags = MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    for (size_t i = 0; i < COUNT(SETTINGS); i++)
        write_file(SETTINGS[i][0], 0, SETTINGS[i][1]);
    for (size_t i = 0; i < COUNT(FROZEN); i++)
        if (access(FROZEN[i], F_OK) == 0 && (mount(FROZEN[i], FROZEN[i], NULL, MS_BIND, NULL) < 0 ||
                                             mount(NULL, FROZEN[i], NULL, flags | MS_REMOUNT, NULL) < 0))
            machine_fail("making %s read-only: %s", FROZEN[i], strerror(errno));
    for (size_t i = 0; i < COUNT(HIDDEN); i++)
        if (access(HIDDEN[i], F_OK) == 0 && mount("/dev/null", HIDDEN[i], NULL, MS_BIND, NULL) < 0)
            machine_fail("hiding %s: %s", HIDDEN[i], strerror(errno));
}

static void write_if_missing(const char *path, const char *text) {
    struct stat found;
    if (lstat(path, &found) == 0) {
        if (S_ISLNK(found.st_mode) || (S_ISREG(found.st_mode) && found.st_size > 0))
            return;
        unlink(path);
    }
    if (!write_file(path, O_CREAT | O_EXCL, text))
        machine_fail("writing %s: %s", path, strerror(errno));
}

/* Whatever the image has there: it was made for other networks than this one. */
static void write_name_servers(const char *list) {
    char text[4 * CMDLINE_VALUE] = "";
    while (*list != 0) {
        size_t size = strcspn(list, ","), used = strlen(text);
        snprintf(text + used, sizeof text - used, "nameserver %.*s\n", (int)size, list);
        list += size + (list[size] == ',');
    }
    if ((unlink("/etc/resolv.conf") < 0 && errno != ENOENT) || !write_file("/etc/resolv.conf", O_CREAT | O_EXCL, text))
        machine_fail("writing /etc/resolv.conf: %s", strerror(errno));
}

void machine_furnish(const struct cmdline *c) {
    umask(0);
    for (size_t i = 0; i < COUNT(MOUNTS); i++) {
        make_folder(MOUNTS[i].path, MOUNTS[i].mode);
        if (mount(MOUNTS[i].type, MOUNTS[i].path, MOUNTS[i].type, MOUNTS[i].flags, MOUNTS[i].options) < 0)
            machine_fail("mounting %s: %s", MOUNTS[i].path, strerror(errno));
    }
    make_devices();
    guard_proc();
    umask(022);
    make_folder("/workspace", 0755);
    make_folder("/etc", 0755);
    write_if_missing("/etc/hosts", HOSTS);
    if (c->dns[0] != 0)
        write_name_servers(c->dns);
    else
        write_if_missing("/etc/resolv.conf", "# no name server: this sandbox has no network device\n");
}
