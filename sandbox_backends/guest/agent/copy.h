/* Files in and out: what the child of a COPY stream does (docs/protocol/agent.md, "COPY"). */
#ifndef III_COPY_H
#define III_COPY_H

enum copy { COPY_NONE = 0, COPY_OUT = 1, COPY_IN = 2 };

/* Pack path to standard output, or unpack standard input to path; returns an exit code, after saying why on stderr. */
int copy_pack(const char *path);
int copy_unpack(const char *path);

#endif
