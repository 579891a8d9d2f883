#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "copy.h"
#include "tarball.h"

enum { DEPTH_MAX = 200 };

static struct tar_entry entry;     /* it is big */
static char bytes[64 << 10];
static int exit_code;

static void complain(const char *name, const char *why) {
    fprintf(stderr, "%s: %s\n", name, why);
    exit_code = 1;
}

static _Noreturn void give_up(void) { _exit(1); } /* nobody takes the archive any more */

/* Exactly as much as the header said, whatever happens to the file meanwhile. */
static void pack_content(int fd) {
    uint64_t left = entry.size;
    while (left > 0) {
        size_t piece = left < sizeof bytes ? (size_t)left : sizeof bytes;
        ssize_t count = read(fd, bytes, piece);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0) {
            complain(entry.name, count < 0 ? strerror(errno) : "became shorter while it was copied");
            memset(bytes, 0, sizeof bytes);
            for (; left > 0; left -= piece) {
                piece = left < sizeof bytes ? (size_t)left : sizeof bytes;
                if (!tar_write_all(STDOUT_FILENO, bytes, piece))
                    give_up();
            }
            break;
        }
        if (!tar_write_all(STDOUT_FILENO, bytes, (size_t)count))
            give_up();
        left -= (size_t)count;
    }
    if (!tar_pad(STDOUT_FILENO, entry.size))
        give_up();
}

static void write_entry(char type, const struct stat *s, uint64_t size) {
    entry.type = type;
    entry.mode = s->st_mode & 07777;
    entry.uid = s->st_uid;
    entry.gid = s->st_gid;
    entry.mtime = s->st_mtime;
    entry.size = size;
    if (!tar_write(STDOUT_FILENO, &entry))
        give_up();
}

static void pack(int folder, const char *name, int depth);

static void pack_folder(int fd, int depth) {
    size_t size = strlen(entry.name);
    struct dirent *child;
    DIR *folder = fdopendir(fd);
    if (folder == NULL || depth == DEPTH_MAX) {
        complain(entry.name, folder == NULL ? strerror(errno) : "too many folders in one another");
    } else {
        while (errno = 0, (child = readdir(folder)) != NULL) {
            if (strcmp(child->d_name, ".") == 0 || strcmp(child->d_name, "..") == 0)
                continue;
            if (size + 1 + strlen(child->d_name) >= TAR_NAME_MAX) {
                complain(entry.name, strerror(ENAMETOOLONG));
                continue;
            }
            entry.name[size] = '/';
            strcpy(entry.name + size + 1, child->d_name);
            pack(dirfd(folder), child->d_name, depth + 1);
            entry.name[size] = 0;
        }
        if (errno != 0)
            complain(entry.name, strerror(errno));
    }
    if (folder != NULL)
        closedir(folder);
    else
        close(fd);
}

static void pack_link(int folder, const char *name, const struct stat *s) {
    ssize_t size = readlinkat(folder, name, entry.target, sizeof entry.target - 1);
    if (size < 0) {
        complain(entry.name, strerror(errno));
        return;
    }
    entry.target[size] = 0;
    write_entry(TAR_LINK, s, 0);
    entry.target[0] = 0;
}

/* entry.name is its name in the archive. */
static void pack(int folder, const char *name, int depth) {
    struct stat s;
    if (fstatat(folder, name, &s, AT_SYMLINK_NOFOLLOW) < 0) {
        complain(entry.name, strerror(errno));
        return;
    }
    if (S_ISLNK(s.st_mode)) {
        pack_link(folder, name, &s);
        return;
    }
    if (!S_ISREG(s.st_mode) && !S_ISDIR(s.st_mode)) {
        complain(entry.name, "left out: neither a file nor a folder nor a link");
        return;
    }
    int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &s) < 0) {
        complain(entry.name, strerror(errno));
        if (fd >= 0)
            close(fd);
    } else if (S_ISDIR(s.st_mode)) {
        write_entry(TAR_FOLDER, &s, 0);
        pack_folder(fd, depth);
    } else if (S_ISREG(s.st_mode)) {
        write_entry(TAR_FILE, &s, (uint64_t)s.st_size);
        pack_content(fd);
        close(fd);
    } else {
        complain(entry.name, "changed while it was copied");
        close(fd);
    }
}

int copy_pack(const char *path) {
    char real[PATH_MAX];
    if (realpath(path, real) == NULL) { /* a link that was named is followed, those below are not */
        complain(path, strerror(errno));
        return 1;
    }
    const char *name = strrchr(real, '/') + 1;
    snprintf(entry.name, sizeof entry.name, "%s", *name ? name : "root");
    pack(AT_FDCWD, real, 0);
    if (!tar_finish(STDOUT_FILENO))
        give_up();
    return exit_code;
}
