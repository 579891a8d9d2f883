/* What the kernel command line says to the agent (docs/protocol/agent.md, "Booting a machine"). */
#ifndef III_CMDLINE_H
#define III_CMDLINE_H

#include <stdbool.h>
#include <stdint.h>

enum { CMDLINE_VALUE = 64 };

struct cmdline {
    char port[CMDLINE_VALUE]; /* iii.link=virtio:NAME; empty with vsock */
    uint32_t vsock_port;      /* iii.link=vsock:PORT; 0 with virtio */
    char root[CMDLINE_VALUE]; /* serial numbers of the disks; data is empty where there is none */
    char data[CMDLINE_VALUE];
    char format[CMDLINE_VALUE]; /* of the root image */
    uint32_t pids;              /* how many processes may be started inside at once; 0 for any number */
};

/* Read the parameters; unknown ones are other people's. Else false, and wrong is what cannot be understood or is missing. */
bool cmdline_parse(struct cmdline *c, const char *text, char wrong[CMDLINE_VALUE]);

#endif
