#include "pty.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

void pty_resize(int master, uint16_t rows, uint16_t cols) {
    struct winsize size = {.ws_row = rows, .ws_col = cols};
    ioctl(master, TIOCSWINSZ, &size);
}

bool pty_open(int *master, int *slave, uint16_t rows, uint16_t cols, uid_t owner) {
    int unlocked = 0;
    *slave = -1;
    *master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (*master < 0)
        return false;
    /* TIOCGPTPEER finds the slave whatever /dev/pts looks like from here. */
    if (ioctl(*master, TIOCSPTLCK, &unlocked) == 0)
        *slave = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*slave < 0) {
        int error = errno;
        close(*master);
        errno = error;
        return false;
    }
    pty_resize(*master, rows, cols);
    if (owner != (uid_t)-1 && fchown(*slave, owner, (gid_t)-1) < 0)
        errno = 0; /* it then opens /dev/tty alone */
    return true;
}
