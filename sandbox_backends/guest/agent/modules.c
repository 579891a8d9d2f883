#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "machine.h"

#define FOLDER "/modules"
#define LIST FOLDER "/order" /* file names, in the order in which they are to be loaded */

static void load(const char *name) {
    char path[256];
    snprintf(path, sizeof path, FOLDER "/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        machine_fail("kernel module %s: %s", name, strerror(errno));
    if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
        machine_fail("loading the kernel module %s: %s", name, strerror(errno));
    close(fd);
    unlink(path); /* the initramfs is memory */
}

void machine_load_modules(void) {
    char name[200];
    FILE *list = fopen(LIST, "re");
    if (list == NULL)
        machine_fail("the initramfs has no " LIST ": %s", strerror(errno));
    while (fscanf(list, "%199s", name) == 1)
        load(name);
    fclose(list);
    unlink(LIST);
}
