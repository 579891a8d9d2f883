/* What the kernel command line says to the agent (docs/protocol/agent.md, "Booting a machine"). */
#ifndef III_CMDLINE_H
#define III_CMDLINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CMDLINE_VALUE = 64, CMDLINE_TARGET = 1024, CMDLINE_MOUNTS = 32 };

/* iii.mount=TAG:TARGET or iii.mount=TAG:TARGET:rw */
struct cmdline_mount {
    char tag[CMDLINE_VALUE];
    char target[CMDLINE_TARGET]; /* absolute, without empty parts, . and .. */
    bool writable;
};

struct cmdline {
    char port[CMDLINE_VALUE]; /* iii.link=virtio:NAME; empty with vsock */
    uint32_t vsock_port;      /* iii.link=vsock:PORT; 0 with virtio */
    char root[CMDLINE_VALUE]; /* serial numbers of the disks; data is empty where there is none */
    char data[CMDLINE_VALUE];
    char format[CMDLINE_VALUE]; /* of the root image */
    char address[CMDLINE_VALUE]; /* iii.net=ADDRESS/PREFIX,GATEWAY (IPv4); empty where there is no network device */
    char gateway[CMDLINE_VALUE];
    uint32_t prefix;
    char dns[CMDLINE_VALUE];    /* iii.dns=ADDRESS,…: name servers; empty with no network device */
    uint32_t pids;              /* how many processes may be started inside at once; 0 for any number */
    size_t mount_count;
    struct cmdline_mount mounts[CMDLINE_MOUNTS];
};

/* Read the parameters; unknown ones are other people's. Else false, and wrong is what cannot be understood or is missing. */
bool cmdline_parse(struct cmdline *c, const char *text, char wrong[CMDLINE_VALUE]);

#endif
