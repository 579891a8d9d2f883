#include "cmdline.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CMDLINE_WORD = 4096 }; /* the kernel's limit of the whole is 2048 */

static bool parse_number(const char *text, uint32_t *number) {
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    unsigned long long parsed = strtoull(text, &end, 10);
    *number = (uint32_t)parsed;
    return *end == 0 && parsed >= 1 && parsed <= INT32_MAX;
}

static bool copy(char to[CMDLINE_VALUE], const char *text) {
    return *text != 0 && snprintf(to, CMDLINE_VALUE, "%s", text) < CMDLINE_VALUE;
}

static const char *after(const char *word, const char *prefix) {
    size_t size = strlen(prefix);
    return strncmp(word, prefix, size) == 0 ? word + size : NULL;
}

static bool parse_link(struct cmdline *c, const char *value) {
    const char *address;
    c->port[0] = 0;
    c->vsock_port = 0;
    if ((address = after(value, "virtio:")) != NULL)
        return copy(c->port, address);
    return (address = after(value, "vsock:")) != NULL && parse_number(address, &c->vsock_port);
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* %XX is a byte other than 0 (RFC 3986, 2.1). */
static bool decode(char to[CMDLINE_TARGET], const char *text, const char *end) {
    size_t size = 0;
    for (; text < end && size < CMDLINE_TARGET - 1; text++, size++) {
        to[size] = *text;
        if (*text != '%')
            continue;
        int high = end - text > 2 ? hex_digit(text[1]) : -1, low = high < 0 ? -1 : hex_digit(text[2]);
        if (low < 0 || (high | low) == 0)
            return false;
        to[size] = (char)(high << 4 | low);
        text += 2;
    }
    to[size] = 0;
    return text == end;
}

static bool is_normal(const char *path) {
    if (path[0] != '/')
        return false;
    while (*path == '/') {
        size_t size = strcspn(++path, "/");
        if (size == 0 || (size == 1 && path[0] == '.') || (size == 2 && path[0] == '.' && path[1] == '.'))
            return false;
        path += size;
    }
    return true;
}

static bool parse_mount(struct cmdline *c, const char *value) {
    size_t tag = strcspn(value, ":");
    if (c->mount_count == CMDLINE_MOUNTS || tag == 0 || tag >= CMDLINE_VALUE || value[tag] == 0)
        return false;
    struct cmdline_mount *m = &c->mounts[c->mount_count++];
    snprintf(m->tag, sizeof m->tag, "%.*s", (int)tag, value);
    const char *target = value + tag + 1, *end = strchrnul(target, ':');
    m->writable = strcmp(end, ":rw") == 0;
    return decode(m->target, target, end) && is_normal(m->target) && (*end == 0 || m->writable);
}

/* Copies text up to a separator, which must be there; returns what comes after it. */
static const char *copy_until(char to[CMDLINE_VALUE], const char *text, char separator) {
    const char *end = strchr(text, separator);
    if (end == NULL || end == text || end - text >= CMDLINE_VALUE)
        return NULL;
    snprintf(to, CMDLINE_VALUE, "%.*s", (int)(end - text), text);
    return end + 1;
}

static bool is_address(const char *text) {
    struct in_addr address;
    return inet_pton(AF_INET, text, &address) == 1;
}

static bool parse_net(struct cmdline *c, const char *value) {
    char prefix[CMDLINE_VALUE];
    return (value = copy_until(c->address, value, '/')) != NULL && (value = copy_until(prefix, value, ',')) != NULL &&
           copy(c->gateway, value) && is_address(c->address) && is_address(c->gateway) &&
           parse_number(prefix, &c->prefix) && c->prefix <= 32;
}

static bool parse_dns(struct cmdline *c, const char *value) {
    char one[CMDLINE_VALUE];
    if (!copy(c->dns, value))
        return false;
    for (const char *next; (next = copy_until(one, value, ',')) != NULL; value = next)
        if (!is_address(one))
            return false;
    return is_address(value);
}

static bool parse_word(struct cmdline *c, const char *word) {
    const char *value;
    if ((value = after(word, "iii.link=")) != NULL)
        return parse_link(c, value);
    if ((value = after(word, "iii.root=")) != NULL)
        return copy(c->root, value);
    if ((value = after(word, "iii.data=")) != NULL)
        return copy(c->data, value);
    if ((value = after(word, "iii.format=")) != NULL)
        return copy(c->format, value);
    if ((value = after(word, "iii.net=")) != NULL)
        return parse_net(c, value);
    if ((value = after(word, "iii.dns=")) != NULL)
        return parse_dns(c, value);
    if ((value = after(word, "iii.pids=")) != NULL)
        return parse_number(value, &c->pids);
    if ((value = after(word, "iii.mount=")) != NULL)
        return parse_mount(c, value);
    return true;
}

bool cmdline_parse(struct cmdline *c, const char *text, char wrong[CMDLINE_VALUE]) {
    *c = (struct cmdline){.root = "iii-root", .format = "squashfs"};
    while (*(text += strspn(text, " \t\n")) != 0) {
        char word[CMDLINE_WORD];
        size_t size = strcspn(text, " \t\n");
        snprintf(word, sizeof word, "%.*s", (int)size, text);
        if ((size >= sizeof word && after(word, "iii.") != NULL) || !parse_word(c, word)) {
            snprintf(wrong, CMDLINE_VALUE, "%.*s", CMDLINE_VALUE - 1, word);
            return false;
        }
        text += size;
    }
    if (c->port[0] == 0 && c->vsock_port == 0) {
        snprintf(wrong, CMDLINE_VALUE, "iii.link=");
        return false;
    }
    return true;
}
