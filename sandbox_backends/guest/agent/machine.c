#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "util.h"

static int data_fd = -1; /* on the file system that takes the writes, for the end; there is one machine */

/* The kernel starts its init with an empty /proc; whoever starts a sandbox's init otherwise has mounted one. */
bool machine_is_ours(void) { return getpid() == 1 && access("/proc/self", F_OK) < 0; }

static void power_off_at_exit(void) {
    if (getpid() == 1)
        machine_power_off();
}

void machine_power_off(void) {
    if (data_fd >= 0) { /* not sync(2): that waits for the host's folders, for ever if their server has ended */
        syncfs(data_fd);
        ioctl(data_fd, FIFREEZE, 0); /* completes the journal, whoever has files open: nothing is left to recover */
    }
    tcdrain(STDERR_FILENO);
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

void machine_fail(const char *format, ...) {
    char line[400];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    say("cannot boot: %s", line);
    machine_power_off();
}

/* The kernel opened its console for us only if the initramfs had a node for it. */
static void open_console(void) {
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    if (fd < 0)
        return;
    for (int standard = 0; standard < 3; standard++)
        dup2(fd, standard);
    if (fd > STDERR_FILENO)
        close(fd);
}

static void read_cmdline(struct cmdline *c) {
    char text[4096], wrong[CMDLINE_VALUE];
    FILE *file = fopen("/proc/cmdline", "re");
    if (file == NULL)
        machine_fail("/proc/cmdline: %s", strerror(errno));
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    if (!cmdline_parse(c, text, wrong))
        machine_fail("the kernel command line is wrong or lacks something: %s", wrong);
}

static void mount_first(const char *type, const char *path) {
    mkdir(path, 0755);
    if (mount(type, path, type, MS_NOSUID | MS_NOEXEC, NULL) < 0 && errno != EBUSY)
        machine_fail("mounting %s: %s", path, strerror(errno));
}

void machine_boot(struct machine *m) {
    struct cmdline c;
    atexit(power_off_at_exit); /* a kernel whose init exits panics */
    mount_first("devtmpfs", "/dev");
    open_console();
    mount_first("proc", "/proc");
    mount_first("sysfs", "/sys");
    read_cmdline(&c);
    machine_load_modules();
    m->is_vsock = c.vsock_port != 0;
    m->link = m->is_vsock ? machine_listen_vsock(c.vsock_port) : machine_open_port(c.port);
    data_fd = machine_mount_root(&c);
    m->group = machine_limit_pids(c.pids);
    machine_enter_root();
    machine_furnish(&c);
    machine_set_up_network(&c);
    machine_mount_shares(&c);
}
