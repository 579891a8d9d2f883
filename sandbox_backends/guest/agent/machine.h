/* The agent as the init of a virtual machine (docs/protocol/agent.md, "Booting a machine"). */
#ifndef III_MACHINE_H
#define III_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cmdline.h"

/* Whether this process was started by a kernel from its initramfs. */
bool machine_is_ours(void);

/* What a boot gives. */
struct machine {
    int link;      /* a descriptor of the virtio port, or of a vsock socket that listens */
    bool is_vsock; /* which of them */
    int group;     /* where a child writes "0" to be counted among those that are limited; -1 if none are */
};

/* From the initramfs to the image's root: all that comes before the link. What fails is said on the console, and is the
 * machine's end. */
void machine_boot(struct machine *m);

/* Everything is written to the disks, then the power goes. */
_Noreturn void machine_power_off(void);

/* Say why on the console, and power off. */
_Noreturn __attribute__((format(printf, 1, 2))) void machine_fail(const char *format, ...);

/* --- steps of it, by file --- */

/* modules.c: load what the initramfs lists. */
void machine_load_modules(void);

/* disks.c: the path of the disk with that serial number, once it is there. */
enum { DISK_PATH = 64 };
void machine_find_disk(const char *serial, const char *what, char path[DISK_PATH]);

/* rootfs.c: make /root-to-be from the disks; returns a descriptor of the file system that is written to. Then make it /. */
int machine_mount_root(const struct cmdline *c);
void machine_enter_root(void);

/* mounts.c: what every sandbox finds in its root. */
void machine_furnish(const struct cmdline *c);

/* network.c: set up the network device, if there is one. */
void machine_set_up_network(const struct cmdline *c);

/* shares.c: show the host's folders in it. */
void machine_mount_shares(const struct cmdline *c);

/* pids.c: limit processes; a descriptor as struct machine's group. */
int machine_limit_pids(uint32_t pids);

/* uevents.c: wait until found(); false if it is not within some seconds. */
bool machine_wait_for(bool (*found)(void *), void *argument);

/* vport.c: a descriptor of the virtio port of that name. vsock.c: one that listens, and one that somebody connected to it;
 * -1 where that is nobody, or not the host. */
int machine_open_port(const char *name);
int machine_listen_vsock(uint32_t port);
int machine_accept_vsock(int listener);

/* time.c: right after a boot or a restored snapshot both are wrong. */
void machine_set_clock(uint64_t nanoseconds);
void machine_add_entropy(const uint8_t *bytes, size_t size);

#endif
