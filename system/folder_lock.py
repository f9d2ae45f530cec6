"""A lock on an output folder, held by one process at a time. The kernel releases it when the process ends."""

import fcntl
import os
import time

from system.errors import UserError


def lock_folder(folder, patience=0.0):
    """Locks `folder`; returns a file descriptor. Closing it, or the end of this process, unlocks the folder.

    Raises UserError if another process still holds the lock after `patience` seconds.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            os.close(descriptor)
            raise UserError(f"{folder}: another run is writing there; wait for its end") from None
        except OSError:
            pass  # Some network file systems cannot lock a folder.
        return descriptor
