#include "child.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include "signals.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static _Noreturn __attribute__((format(printf, 3, 4))) void fail(int pipe, int error, const char *format, ...) {
    struct spawn_failure failure = {.error = error};
    va_list args;
    va_start(args, format);
    int size = vsnprintf(failure.text, sizeof failure.text, format, args);
    va_end(args);
    if (size >= 0 && (size_t)size < sizeof failure.text)
        snprintf(failure.text + size, sizeof failure.text - (size_t)size, ": %s", strerror(error));
    if (write(pipe, &failure, sizeof failure) < 0)
        _exit(126);
    _exit(127);
}

/* How many ids a map of /proc/self holds; 0 if it cannot be read. */
static unsigned long mapped_ids(const char *path) {
    unsigned long inside, outside, count, total = 0;
    FILE *map = fopen(path, "re");
    while (map != NULL && fscanf(map, "%lu %lu %lu", &inside, &outside, &count) == 3)
        total += count;
    return total;
}

static _Noreturn void fail_ids(int pipe, int error, const char *what, unsigned id) {
    if (mapped_ids("/proc/self/uid_map") == 1)
        fail(pipe, error, "cannot switch to %s %u: this sandbox has only one user id", what, id);
    fail(pipe, error, "cannot switch to %s %u", what, id);
}

static void switch_ids(const struct spawn_spec *spec, int pipe) {
    bool same_user = !spec->has_uid || spec->uid == geteuid();
    bool same_group = !spec->has_gid || spec->gid == getegid();
    int groups_error = 0;
    if ((spec->group_count > 0 || (!same_user && getgroups(0, NULL) > 0)) &&
        setgroups(spec->group_count, spec->groups) < 0)
        groups_error = errno;
    if (!same_group && setresgid(spec->gid, spec->gid, spec->gid) < 0)
        fail_ids(pipe, errno, "group", spec->gid);
    if (!same_user && setresuid(spec->uid, spec->uid, spec->uid) < 0)
        fail_ids(pipe, errno, "user", spec->uid);
    if (groups_error != 0) /* judged last: where users can't be switched either, that is what people want to hear */
        fail(pipe, groups_error, "cannot set supplementary groups");
}

/* What root may do in a machine of its own: to files, users and its own network. Not: make device nodes, touch hardware,
 * mount, or look into the agent. */
static const unsigned MACHINE_CAPABILITIES =
    1U << CAP_CHOWN | 1U << CAP_DAC_OVERRIDE | 1U << CAP_FOWNER | 1U << CAP_FSETID | 1U << CAP_KILL | 1U << CAP_SETGID |
    1U << CAP_SETUID | 1U << CAP_SETPCAP | 1U << CAP_NET_BIND_SERVICE | 1U << CAP_SYS_CHROOT | 1U << CAP_SETFCAP;

/* The agent may hold capabilities to switch ids and to signal other users' processes; elsewhere than in a machine what it
 * starts holds none. no_new_privs keeps an execve as uid 0 from bringing them back. */
static bool drop_capabilities(const struct spawn_spec *spec) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct kept[_LINUX_CAPABILITY_U32S_3] = {{0}};
    if (spec->keeps_capabilities && geteuid() == 0)
        kept[0].effective = kept[0].permitted = MACHINE_CAPABILITIES;
    return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) == 0 && syscall(SYS_capset, &header, kept) == 0;
}

/* Nothing that is started can ever have more than these. */
static bool bound_capabilities(void) {
    for (unsigned capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
        if ((capability >= 32 || !(MACHINE_CAPABILITIES & 1U << capability)) &&
            prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            return false;
    return true;
}

static const char *path_of(char *const *env) {
    for (; *env != NULL; env++)
        if (strncmp(*env, "PATH=", 5) == 0)
            return *env + 5;
    return DEFAULT_PATH;
}

/* Returns only if it failed, with errno. */
static void try_exec(const char *path, const struct spawn_spec *spec) {
    execve(path, spec->argv, spec->env);
    if (errno != ENOEXEC)
        return;
    char **argv = calloc(spec->argc + 2, sizeof *argv); /* a script without #! */
    if (argv == NULL)
        return;
    argv[0] = (char[]){"/bin/sh"};
    argv[1] = (char *)(uintptr_t)path;
    memcpy(argv + 2, spec->argv + 1, (spec->argc - 1) * sizeof *argv);
    execve("/bin/sh", argv, spec->env);
}

/* As execvpe, with the PATH of the child's environment; returns the errno that tells most. */
static int search_and_exec(const struct spawn_spec *spec) {
    const char *name = spec->argv[0];
    if (*name == 0)
        return ENOENT;
    if (strchr(name, '/') != NULL) {
        try_exec(name, spec);
        return errno;
    }
    int told = ENOENT;
    for (const char *from = path_of(spec->env);; from++) {
        size_t size = strcspn(from, ":");
        char path[PATH_MAX];
        int length = snprintf(path, sizeof path, "%.*s%s%s", (int)size, from, size ? "/" : "./", name);
        if (length > 0 && (size_t)length < sizeof path) {
            try_exec(path, spec);
            if (errno == EACCES)
                told = EACCES;
            else if (errno != ENOENT && errno != ENOTDIR && errno != ESTALE && errno != ENODEV && errno != ETIMEDOUT)
                return errno;
        }
        from += size;
        if (*from == 0)
            return told;
    }
}

/* Without exec nothing closes by itself. */
static _Noreturn void run_copy(const struct spawn_spec *spec, int failure) {
    if (chdir("/workspace") < 0 && chdir("/") < 0)
        fail(failure, errno, "cannot enter /");
    if (syscall(SYS_close_range, 3U, ~0U, 0U) < 0)
        for (int fd = 3; fd < 1 << 16; fd++)
            close(fd);
    _exit(spec->copy == COPY_OUT ? copy_pack(spec->path) : copy_unpack(spec->path));
}

void child_run(const struct spawn_spec *spec, const int standard[3], int failure) {
    setsid();
    if (spec->tty && ioctl(standard[0], TIOCSCTTY, 0) < 0)
        fail(failure, errno, "cannot make the terminal the controlling one");
    for (int i = 0; i < 3; i++)
        if (dup2(standard[i], i) < 0)
            fail(failure, errno, "cannot set descriptor %d", i);
    if (spec->group >= 0 && write(spec->group, "0", 1) < 0)
        fail(failure, errno, "cannot enter the control group of the sandbox");
    signals_reset();
    umask(022);
    if (spec->keeps_capabilities && !bound_capabilities())
        fail(failure, errno, "cannot bound capabilities");
    switch_ids(spec, failure);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || !drop_capabilities(spec))
        fail(failure, errno, "cannot drop privileges");
    if (spec->copy != COPY_NONE)
        run_copy(spec, failure);
    if (chdir(spec->cwd) < 0)
        fail(failure, errno, "working directory %s", spec->cwd);
    int error = search_and_exec(spec);
    fail(failure, error, "%s", spec->argv[0]);
}
