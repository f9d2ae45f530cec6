"""Keeps two runs out of one output folder; the system gives the lock back when a process ends, however it ends."""

import fcntl
import os
import time

from system.errors import UserError


def lock_folder(folder, patience=0.0):
    """Locks `folder`; returns the descriptor whose closing, or this process's end, unlocks it.

    Raises UserError if another run holds the lock, and does so still after `patience` seconds.
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
