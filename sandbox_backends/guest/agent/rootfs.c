#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine.h"

#define IMAGE "/image"
#define DATA "/data"
#define ROOT "/root"

static void make_folder(const char *path) {
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        machine_fail("making the folder %s: %s", path, strerror(errno));
}

static void mount_image(const struct cmdline *c) {
    char disk[DISK_PATH];
    machine_find_disk(c->root, "the root image", disk);
    make_folder(IMAGE);
    if (mount(disk, IMAGE, c->format, MS_RDONLY | MS_NODEV, NULL) < 0)
        machine_fail("mounting the root image (%s as %s): %s", disk, c->format, strerror(errno));
}

/* What is deleted inside is given back to the host's file, and nothing is written there that nobody wrote. */
static void mount_data(const struct cmdline *c) {
    char disk[DISK_PATH];
    make_folder(DATA);
    if (c->data[0] == 0) {
        if (mount("tmpfs", DATA, "tmpfs", MS_NODEV, "mode=0755,size=50%") < 0)
            machine_fail("mounting a tmpfs for what is written: %s", strerror(errno));
        return;
    }
    machine_find_disk(c->data, "the writable disk", disk);
    if (mount(disk, DATA, "ext4", MS_NODEV | MS_NOATIME, "noinit_itable,discard,errors=remount-ro") < 0)
        machine_fail("mounting the writable disk (%s as ext4): %s", disk, strerror(errno));
}

int machine_mount_root(const struct cmdline *c) {
    mount_image(c);
    mount_data(c);
    make_folder(DATA "/upper");
    make_folder(DATA "/work");
    make_folder(ROOT);
    if (mount("overlay", ROOT, "overlay", MS_NODEV, "lowerdir=" IMAGE ",upperdir=" DATA "/upper,workdir=" DATA "/work") < 0)
        machine_fail("mounting the overlay of root image and writable disk: %s", strerror(errno));
    int data = open(DATA, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (data < 0)
        machine_fail("opening the writable disk: %s", strerror(errno));
    return data;
}

/* What is left behind: an empty initramfs, with the image and the disk mounted where no path leads. */
void machine_enter_root(void) {
    unlink("/init");
    umount2("/proc", MNT_DETACH);
    umount2("/sys", MNT_DETACH);
    umount2("/dev", MNT_DETACH);
    if (chdir(ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        machine_fail("switching to the root image: %s", strerror(errno));
}
