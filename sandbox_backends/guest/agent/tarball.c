#include "tarball.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RECORDS_MAX = 3 * TAR_NAME_MAX };

struct header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, target[100], magic[6], version[2];
    char user[32], group[32], major[8], minor[8], prefix[155], unused[12];
};

bool tar_write_all(int fd, const void *bytes, size_t size) {
    const char *at = bytes;
    while (size > 0) {
        ssize_t count = write(fd, at, size);
        if (count < 0 && errno != EINTR)
            return false;
        if (count > 0) {
            at += count;
            size -= (size_t)count;
        }
    }
    return true;
}

bool tar_read_all(int fd, void *bytes, size_t size) {
    char *at = bytes;
    while (size > 0) {
        ssize_t count = read(fd, at, size);
        if (count == 0) {
            errno = ENODATA;
            return false;
        }
        if (count < 0 && errno != EINTR)
            return false;
        if (count > 0) {
            at += count;
            size -= (size_t)count;
        }
    }
    return true;
}

bool tar_name_is_safe(const char *name) {
    if (*name == 0 || *name == '/')
        return false;
    for (;; name++) {
        size_t size = strcspn(name, "/");
        if (size == 2 && name[0] == '.' && name[1] == '.')
            return false;
        name += size;
        if (*name == 0)
            return true;
    }
}

/* --- writing --- */

/* False if the number has more digits than the field. */
static bool put_octal(char *field, size_t size, uint64_t number) {
    char digits[32];
    if ((size_t)snprintf(digits, sizeof digits, "%0*llo", (int)size - 1, (unsigned long long)number) >= size)
        return false;
    memcpy(field, digits, size - 1);
    return true;
}

static unsigned checksum(const struct header *h) {
    const unsigned char *bytes = (const unsigned char *)h;
    unsigned sum = 0;
    for (size_t i = 0; i < TAR_BLOCK; i++)
        sum += i >= offsetof(struct header, checksum) && i < offsetof(struct header, type) ? ' ' : bytes[i];
    return sum;
}

static bool write_header(int fd, struct header *h) {
    memcpy(h->magic, "ustar", 6);
    memcpy(h->version, "00", 2);
    put_octal(h->checksum, 7, checksum(h));
    h->checksum[7] = ' ';
    return tar_write_all(fd, h, sizeof *h);
}

/* "LENGTH KEY=VALUE\n", where LENGTH counts its own digits. */
static void add_record(char *records, size_t *used, const char *key, const char *value) {
    size_t rest = strlen(key) + strlen(value) + 3, length = rest + 1;
    while (length != rest + (size_t)snprintf(NULL, 0, "%zu", length))
        length = rest + (size_t)snprintf(NULL, 0, "%zu", length);
    *used += (size_t)snprintf(records + *used, RECORDS_MAX - *used, "%zu %s=%s\n", length, key, value);
}

static bool write_records(int fd, const char *records, size_t size) {
    struct header h = {.name = "././@PaxHeader", .type = 'x'};
    put_octal(h.mode, sizeof h.mode, 0644);
    put_octal(h.uid, sizeof h.uid, 0);
    put_octal(h.gid, sizeof h.gid, 0);
    put_octal(h.size, sizeof h.size, size);
    put_octal(h.mtime, sizeof h.mtime, 0);
    return write_header(fd, &h) && tar_write_all(fd, records, size) && tar_pad(fd, size);
}

bool tar_write(int fd, const struct tar_entry *e) {
    struct header h = {.type = e->type};
    static char records[RECORDS_MAX];
    char number[24];
    size_t used = 0;
    strncpy(h.name, e->name, sizeof h.name);
    strncpy(h.target, e->target, sizeof h.target);
    if (strlen(e->name) > sizeof h.name)
        add_record(records, &used, "path", e->name);
    if (strlen(e->target) > sizeof h.target)
        add_record(records, &used, "linkpath", e->target);
    if (!put_octal(h.size, sizeof h.size, e->size)) {
        snprintf(number, sizeof number, "%llu", (unsigned long long)e->size);
        add_record(records, &used, "size", number);
        put_octal(h.size, sizeof h.size, 0);
    }
    put_octal(h.mode, sizeof h.mode, e->mode & 07777);
    if (!put_octal(h.uid, sizeof h.uid, e->uid))
        put_octal(h.uid, sizeof h.uid, 0);
    if (!put_octal(h.gid, sizeof h.gid, e->gid))
        put_octal(h.gid, sizeof h.gid, 0);
    if (e->mtime < 0 || !put_octal(h.mtime, sizeof h.mtime, (uint64_t)e->mtime))
        put_octal(h.mtime, sizeof h.mtime, 0);
    return (used == 0 || write_records(fd, records, used)) && write_header(fd, &h);
}

bool tar_pad(int fd, uint64_t size) {
    static const char ZEROS[TAR_BLOCK];
    return tar_write_all(fd, ZEROS, tar_padding(size));
}

bool tar_finish(int fd) {
    static const char ZEROS[2 * TAR_BLOCK];
    return tar_write_all(fd, ZEROS, sizeof ZEROS);
}

/* --- reading --- */

static bool malformed(void) {
    errno = EBADMSG;
    return false;
}

static bool get_octal(const char *field, size_t size, uint64_t *number) {
    size_t i = 0;
    *number = 0;
    while (i < size && field[i] == ' ')
        i++;
    for (; i < size && field[i] >= '0' && field[i] <= '7'; i++)
        *number = *number << 3 | (uint64_t)(field[i] - '0');
    return i == size || field[i] == 0 || field[i] == ' ';
}

static bool set_name(char *to, const char *value, size_t size) {
    if (size >= TAR_NAME_MAX || memchr(value, 0, size) != NULL)
        return malformed();
    memcpy(to, value, size);
    to[size] = 0;
    return true;
}

static bool take_record(struct tar_entry *e, const char *key, size_t key_size, const char *value, size_t size, bool *sized) {
    if (key_size == 4 && memcmp(key, "path", 4) == 0)
        return set_name(e->name, value, size);
    if (key_size == 8 && memcmp(key, "linkpath", 8) == 0)
        return set_name(e->target, value, size);
    if (key_size == 4 && memcmp(key, "size", 4) == 0) {
        *sized = true;
        e->size = 0;
        for (size_t i = 0; i < size; i++) {
            if (value[i] < '0' || value[i] > '9' || e->size > UINT64_MAX / 20)
                return malformed();
            e->size = e->size * 10 + (uint64_t)(value[i] - '0');
        }
    }
    return true; /* other records are details */
}

static bool take_records(struct tar_entry *e, const char *records, size_t size, bool *sized) {
    const char *at = records, *end = records + size;
    while (at < end) {
        size_t length = 0;
        const char *start = at;
        for (; at < end && *at >= '0' && *at <= '9' && length <= RECORDS_MAX; at++)
            length = length * 10 + (size_t)(*at - '0');
        if (at == end || *at != ' ' || length > (size_t)(end - start) || length < (size_t)(at - start) + 3 ||
            start[length - 1] != '\n')
            return malformed();
        const char *key = at + 1, *last = start + length - 1, *equals = memchr(key, '=', (size_t)(last - key));
        if (equals == NULL ||
            !take_record(e, key, (size_t)(equals - key), equals + 1, (size_t)(last - equals - 1), sized))
            return malformed();
        at = start + length;
    }
    return true;
}

static bool take_header(struct tar_entry *e, const struct header *h, bool sized) {
    uint64_t number;
    char name[sizeof h->prefix + 1 + sizeof h->name + 1];
    if (e->name[0] == 0) {
        snprintf(name, sizeof name, "%.*s%s%.*s", (int)sizeof h->prefix, h->prefix, h->prefix[0] ? "/" : "",
                 (int)sizeof h->name, h->name);
        strcpy(e->name, name);
    }
    if (e->target[0] == 0)
        snprintf(e->target, sizeof e->target, "%.*s", (int)sizeof h->target, h->target);
    e->type = h->type == 0 ? TAR_FILE : h->type;
    if (!sized && !get_octal(h->size, sizeof h->size, &e->size))
        return malformed();
    if (!get_octal(h->mode, sizeof h->mode, &number))
        return malformed();
    e->mode = (unsigned)number & 07777;
    if (!get_octal(h->mtime, sizeof h->mtime, &number))
        return malformed();
    e->mtime = (int64_t)number;
    return true;
}

bool tar_read(int fd, struct tar_entry *e, bool *end) {
    static const struct header ZEROS;
    static char records[RECORDS_MAX];
    struct header h;
    uint64_t size;
    bool sized = false;
    memset(e, 0, sizeof *e);
    *end = false;
    for (;;) {
        if (!tar_read_all(fd, &h, sizeof h))
            return false;
        if (memcmp(&h, &ZEROS, sizeof h) == 0) {
            *end = true;
            return true;
        }
        if (!get_octal(h.checksum, sizeof h.checksum, &size) || size != checksum(&h))
            return malformed();
        if (h.type != 'x' && h.type != 'g')
            return take_header(e, &h, sized);
        if (!get_octal(h.size, sizeof h.size, &size) || size > sizeof records)
            return malformed();
        if (!tar_read_all(fd, records, size) || !tar_skip(fd, tar_padding(size)))
            return false;
        if (h.type == 'x' && !take_records(e, records, size, &sized))
            return false;
    }
}

bool tar_skip(int fd, uint64_t size) {
    char ignored[TAR_BLOCK];
    for (; size > 0; size -= size < sizeof ignored ? size : sizeof ignored)
        if (!tar_read_all(fd, ignored, size < sizeof ignored ? size : sizeof ignored))
            return false;
    return true;
}
