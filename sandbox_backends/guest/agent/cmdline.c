#include "cmdline.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    if ((value = after(word, "iii.pids=")) != NULL)
        return parse_number(value, &c->pids);
    return true;
}

bool cmdline_parse(struct cmdline *c, const char *text, char wrong[CMDLINE_VALUE]) {
    *c = (struct cmdline){.root = "iii-root", .format = "squashfs"};
    while (*(text += strspn(text, " \t\n")) != 0) {
        char word[2 * CMDLINE_VALUE];
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
