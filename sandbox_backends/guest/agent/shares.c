/* Folders of the host, by virtiofs. Neither the image nor what was written before is trusted: a link on the way could lead
 * a mount to where it is not meant to be. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine.h"

static int enter(int folder, const char *name, const char *target) {
    if (mkdirat(folder, name, 0755) < 0 && errno != EEXIST)
        machine_fail("making %s for a mount: %s", target, strerror(errno));
    int below = openat(folder, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (below < 0 && errno == ENOTDIR)
        machine_fail("nothing can be mounted on %s: %s is a link or file in the image", target, name);
    if (below < 0)
        machine_fail("opening %s for a mount: %s", target, strerror(errno));
    close(folder);
    return below;
}

static void mount_share(const struct cmdline_mount *m) {
    char path[sizeof m->target], point[32], *rest = NULL;
    int folder = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    snprintf(path, sizeof path, "%s", m->target);
    for (char *name = strtok_r(path, "/", &rest); name != NULL; name = strtok_r(NULL, "/", &rest))
        folder = enter(folder, name, m->target);
    snprintf(point, sizeof point, "/proc/self/fd/%d", folder);
    if (mount(m->tag, point, "virtiofs", MS_NOSUID | MS_NODEV | (m->writable ? 0 : MS_RDONLY), NULL) < 0)
        machine_fail("mounting the host's folder %s on %s: %s", m->tag, m->target, strerror(errno));
    close(folder);
}

void machine_mount_shares(const struct cmdline *c) {
    for (size_t i = 0; i < c->mount_count; i++)
        mount_share(&c->mounts[i]);
}
