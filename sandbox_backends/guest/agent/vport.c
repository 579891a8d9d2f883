#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "machine.h"

#define PORTS "/sys/class/virtio-ports"

struct search {
    const char *name;
    char path[64];
};

static bool is_named(const char *port, const char *name) {
    char line[80] = "", path[128];
    snprintf(path, sizeof path, PORTS "/%.32s/name", port);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    if (fgets(line, sizeof line, file) != NULL)
        line[strcspn(line, "\n")] = 0;
    fclose(file);
    return strcmp(line, name) == 0;
}

static bool find(void *argument) {
    struct search *s = argument;
    struct dirent *entry;
    bool found = false;
    DIR *ports = opendir(PORTS);
    while (!found && ports != NULL && (entry = readdir(ports)) != NULL)
        if (entry->d_name[0] != '.' && is_named(entry->d_name, s->name)) {
            snprintf(s->path, sizeof s->path, "/dev/%.32s", entry->d_name);
            found = true;
        }
    if (ports != NULL)
        closedir(ports);
    return found;
}

int machine_open_port(const char *name) {
    struct search s = {.name = name};
    if (!machine_wait_for(find, &s))
        machine_fail("there is no virtio serial port with the name %s", name);
    int fd = open(s.path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        machine_fail("opening the virtio serial port %s: %s", s.path, strerror(errno));
    return fd;
}
