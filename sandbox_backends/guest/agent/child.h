#ifndef III_CHILD_H
#define III_CHILD_H

#include "spawn.h"

/* In the child: become the program. Failing that, write a spawn_failure to the pipe and exit. */
_Noreturn void child_run(const struct spawn_spec *spec, const int standard[3], int failure);

#endif
