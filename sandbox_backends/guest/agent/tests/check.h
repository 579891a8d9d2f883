/* The least a test program needs. */
#ifndef III_CHECK_H
#define III_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            dprintf(2, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition);                                    \
            abort();                                                                                                  \
        }                                                                                                             \
    } while (0)

#endif
