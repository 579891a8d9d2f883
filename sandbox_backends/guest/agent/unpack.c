#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "copy.h"
#include "tarball.h"

static struct tar_entry entry; /* it is big */
static char bytes[64 << 10];

static int fail(const char *name, const char *why) {
    fprintf(stderr, "%s: %s\n", name, why);
    return 1;
}

static const struct timespec *times(void) {
    static struct timespec both[2] = {{.tv_nsec = UTIME_OMIT}};
    both[1].tv_sec = (time_t)entry.mtime;
    return both;
}

/* What is in the way goes, except a folder. */
static bool make_room(int folder, const char *name) { return unlinkat(folder, name, 0) == 0 || errno == ENOENT; }

static bool write_content(int fd) {
    for (uint64_t left = entry.size; left > 0;) {
        size_t piece = left < sizeof bytes ? (size_t)left : sizeof bytes;
        if (!tar_read_all(STDIN_FILENO, bytes, piece) || !tar_write_all(fd, bytes, piece))
            return false;
        left -= piece;
    }
    return tar_skip(STDIN_FILENO, tar_padding(entry.size));
}

static bool unpack_file(int folder, const char *name) {
    if (!make_room(folder, name))
        return false;
    int fd = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    bool done = write_content(fd) && fchmod(fd, entry.mode) == 0;
    int error = errno;
    futimens(fd, times());
    if (close(fd) < 0 && done)
        return false;
    errno = error;
    return done;
}

static bool unpack_folder(int folder, const char *name) {
    struct stat found;
    if (mkdirat(folder, name, 0700) < 0 &&
        (errno != EEXIST || fstatat(folder, name, &found, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(found.st_mode)))
        return false;
    return fchmodat(folder, name, entry.mode | 0700, 0) == 0;
}

static bool unpack_link(int folder, const char *name) {
    if (!make_room(folder, name) || symlinkat(entry.target, folder, name) < 0)
        return false;
    utimensat(folder, name, times(), AT_SYMLINK_NOFOLLOW);
    return true;
}

/* The folder that an entry is in, and the last part of its name. Links on the way are not followed: whoever works inside
 * may have made them. */
static int folder_of(char *name, char **last) {
    int folder = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (char *slash; folder >= 0 && (slash = strchr(name, '/')) != NULL; name = slash + 1) {
        *slash = 0;
        int next = *name == 0 ? fcntl(folder, F_DUPFD_CLOEXEC, 0)
                              : openat(folder, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        close(folder);
        folder = next;
    }
    *last = name;
    return folder;
}

static bool unpack_in(int folder, const char *name) {
    switch (entry.type) {
    case TAR_FILE:
        return unpack_file(folder, name);
    case TAR_FOLDER:
        return unpack_folder(folder, name);
    case TAR_LINK:
        return unpack_link(folder, name);
    default:
        errno = EOPNOTSUPP;
        return false;
    }
}

static bool unpack_entry(char *name) {
    char *last;
    int folder = folder_of(name, &last);
    if (folder < 0)
        return false;
    bool done = unpack_in(folder, last);
    int error = errno;
    close(folder);
    errno = error;
    return done;
}

/* The name to unpack an entry as: its first part becomes `root`, if there is one. */
static char *renamed(const char *root) {
    static char name[2 * TAR_NAME_MAX];
    const char *rest = root == NULL ? entry.name : entry.name + strcspn(entry.name, "/");
    snprintf(name, sizeof name, "%s%s", root == NULL ? "" : root, rest);
    return name;
}

/* As cp: into a folder that is there, else as what is named. Gives the new name of the first part, if any. */
static bool enter(const char *path, char *parent, const char **root) {
    struct stat found;
    *root = NULL;
    if (stat(path, &found) == 0 && S_ISDIR(found.st_mode))
        return chdir(path) == 0;
    snprintf(parent, TAR_NAME_MAX, "%s", path);
    for (size_t size = strlen(parent); size > 1 && parent[size - 1] == '/'; size--)
        parent[size - 1] = 0;
    char *slash = strrchr(parent, '/');
    *root = slash == NULL ? parent : slash + 1;
    if (slash == NULL)
        return true;
    *slash = 0;
    return chdir(slash == parent ? "/" : parent) == 0;
}

int copy_unpack(const char *path) {
    char parent[TAR_NAME_MAX];
    const char *root;
    bool end;
    umask(0);
    if (!enter(path, parent, &root))
        return fail(path, strerror(errno));
    while (tar_read(STDIN_FILENO, &entry, &end)) {
        if (end)
            return 0;
        if (!tar_name_is_safe(entry.name))
            return fail(entry.name, "such a name is not unpacked");
        for (size_t size = strlen(entry.name); size > 1 && entry.name[size - 1] == '/'; size--)
            entry.name[size - 1] = 0;
        if (!unpack_entry(renamed(root)))
            return fail(entry.name, strerror(errno));
    }
    return fail("the archive", strerror(errno));
}
