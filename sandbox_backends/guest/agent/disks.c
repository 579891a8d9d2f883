#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "machine.h"
#include "util.h"

struct search {
    const char *serial;
    char *path;
    char seen[160]; /* what there is instead, for people */
};

static bool looks_at(struct search *s, const char *disk) {
    char line[64] = "", path[300];
    snprintf(path, sizeof path, "/sys/block/%s/serial", disk);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    if (fgets(line, sizeof line, file) != NULL)
        line[strcspn(line, "\n")] = 0;
    fclose(file);
    size_t used = strlen(s->seen);
    snprintf(s->seen + used, sizeof s->seen - used, " %s=%s", disk, line);
    return strcmp(line, s->serial) == 0;
}

static bool find(void *argument) {
    struct search *s = argument;
    struct dirent *entry;
    bool found = false;
    DIR *disks = opendir("/sys/block");
    s->seen[0] = 0;
    while (!found && disks != NULL && (entry = readdir(disks)) != NULL)
        if (entry->d_name[0] != '.' && strlen(entry->d_name) < 32 && looks_at(s, entry->d_name)) {
            snprintf(s->path, DISK_PATH, "/dev/%.32s", entry->d_name);
            found = true;
        }
    if (disks != NULL)
        closedir(disks);
    return found;
}

void machine_find_disk(const char *serial, const char *what, char path[DISK_PATH]) {
    struct search s = {.serial = serial, .path = path};
    if (!machine_wait_for(find, &s))
        machine_fail("%s: there is no disk with the serial number %s (there are:%s)", what, serial,
                     s.seen[0] ? s.seen : " none");
}
