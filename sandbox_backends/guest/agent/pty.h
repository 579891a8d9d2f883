#ifndef III_PTY_H
#define III_PTY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A pseudo-terminal of that size; the master is non-blocking. owner may be (uid_t)-1. On failure errno is set. */
bool pty_open(int *master, int *slave, uint16_t rows, uint16_t cols, uid_t owner);
void pty_resize(int master, uint16_t rows, uint16_t cols);

#endif
