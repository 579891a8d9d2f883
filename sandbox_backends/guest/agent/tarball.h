/* The archive of a COPY stream: ustar with pax records for what does not fit (POSIX.1-2017, pax, "ustar Interchange Format"
 * and "pax Interchange Format"). Descriptors block; functions that
 * return bool leave the reason in errno (EBADMSG: malformed). */
#ifndef III_TARBALL_H
#define III_TARBALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { TAR_BLOCK = 512, TAR_FILE = '0', TAR_LINK = '2', TAR_FOLDER = '5', TAR_NAME_MAX = 4096 };

struct tar_entry {
    char type;
    char name[TAR_NAME_MAX], target[TAR_NAME_MAX]; /* target of a symbolic link */
    unsigned mode;
    uid_t uid;
    gid_t gid;
    uint64_t size;
    int64_t mtime;
};

bool tar_write(int fd, const struct tar_entry *e); /* its header; size bytes follow, then tar_pad */
bool tar_pad(int fd, uint64_t size);
bool tar_finish(int fd);

/* The next header; *end if the archive is over. size bytes follow, then tar_skip of what is left and the padding. */
bool tar_read(int fd, struct tar_entry *e, bool *end);
bool tar_skip(int fd, uint64_t size);

bool tar_write_all(int fd, const void *bytes, size_t size);
bool tar_read_all(int fd, void *bytes, size_t size);

static inline uint64_t tar_padding(uint64_t size) { return -size & (TAR_BLOCK - 1); }

/* Whether a name leads nowhere but below the folder where the archive is unpacked. */
bool tar_name_is_safe(const char *name);

#endif
