#include "util.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void *there(void *memory) {
    if (memory == NULL) {
        say("out of memory");
        exit(1);
    }
    return memory;
}

void *must_alloc(size_t size) { return there(calloc(1, size ? size : 1)); }

void *must_realloc(void *old, size_t size) { return there(realloc(old, size ? size : 1)); }

void say(const char *format, ...) {
    char line[512];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (size >= 0)
        fprintf(stderr, "iii-agent: %s\n", line);
}
