#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "signals.h"

/* By the system call itself: libc refuses the signals that its own threads use, and those too can come in ignored. */
void signals_reset(void) {
    static const unsigned long standard[8]; /* the kernel's struct sigaction: SIG_DFL, no flags, an empty mask */
    static const unsigned long none;        /* the kernel's sigset_t, of 64 bits */
    for (int signal = 1; signal <= 64; signal++)
        syscall(SYS_rt_sigaction, signal, standard, NULL, sizeof none);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none);
}
