/* In place of bwrap: clones a child and never releases it. The child ignores what can be ignored, and no parent-death
   signal is set: as bwrap's child is in the moment after clone(2). */
#include <signal.h>
#include <unistd.h>

int main(void) {
    if (fork() == 0) {
        for (int number = 1; number < NSIG; number++)
            signal(number, SIG_IGN);
    }
    for (;;)
        pause();
}
