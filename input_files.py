"""Opening files that users name, or that lie in folders they name: whatever stands there, nobody waits forever."""

import errno
import os
import select
import stat

# Nothing may come through a pipe for so long at first; then it counts as one that nobody writes into.
PIPE_SECONDS = 30


def open_input(path, mode="r", **arguments):
    """Opens `path` for reading as `open` does; raises OSError for what is neither a file nor a pipe that is written to.

    A pipe without a writer would keep a reader waiting, and a device such as /dev/zero would fill the memory.
    """
    return open(path, mode, opener=_open, **arguments)


def _open(path, flags):
    # Without O_NONBLOCK a pipe that nobody writes into could not even be opened.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(kind):
            if not select.select([descriptor], [], [], PIPE_SECONDS)[0]:
                raise OSError(errno.ETIMEDOUT, f"nothing has come through this pipe for {PIPE_SECONDS} seconds", path)
            os.set_blocking(descriptor, True)
        # What open() itself says about a folder is clear.
        elif not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise OSError(errno.EINVAL, "neither a file nor a pipe", path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
