"""The namespace keeper: a small single-threaded process that owns all mounts of this backend.

It enters a mount namespace of its own (and a user namespace, where it is not root), mounts each image once there, and
forks one child per boot that adds the overlay in a mount namespace of the sandbox's own and becomes ``bwrap``. Nothing
is ever mounted on the machine itself, so nothing has to be swept: a namespace's mounts end with its last process, and
the keeper's parent-death signal ends it with the sandbox host.

It must be single-threaded (``unshare(2)``, CLONE_NEWUSER) and it forks without exec'ing Python again, so it imports the
standard library, and what of a gate needs no more, and knows no event loop: one ``select`` over the driver's socket,
SIGCHLD and bwrap's info pipes.
"""
