/* Calls system calls inside a sandbox and prints what the kernel says: "name errno" per line.
   usage: sysprobe NAME=NUMBER | --vsock | --unix | --tiocsti | --newuser | --clone3 | --i386 | --x32, ... */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void report(const char *name, long result) {
    printf("%s %d\n", name, result < 0 ? errno : 0);
    fflush(stdout);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        char *name = argv[i], *number = strchr(name, '=');
        errno = 0;
        if (number != NULL) {
            *number++ = 0;
            report(name, syscall(atol(number), 0L, 0L, 0L, 0L, 0L, 0L));
        } else if (strcmp(name, "--vsock") == 0) {
            report(name, socket(AF_VSOCK, SOCK_STREAM, 0));
        } else if (strcmp(name, "--unix") == 0) {
            report(name, socket(AF_UNIX, SOCK_STREAM, 0));
        } else if (strcmp(name, "--tiocsti") == 0) {
            report(name, ioctl(0, TIOCSTI, "x"));
        } else if (strcmp(name, "--newuser") == 0) {
            report(name, syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0L, 0L, 0L, 0L));
        } else if (strcmp(name, "--clone3") == 0) {
            report(name, syscall(SYS_clone3, 0L, 0L));
        }
#ifdef __x86_64__
        else if (strcmp(name, "--i386") == 0) {
            long result;
            __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory"); /* getpid of i386 */
            report(name, result);
        } else if (strcmp(name, "--x32") == 0) {
            report(name, syscall(0x40000000L + SYS_getpid));
        }
#endif
    }
    return 0;
}
