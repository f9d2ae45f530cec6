"""The errors of the suite, their exit statuses and their one-line messages."""

import contextlib
import errno
import os
import sys

from system import signals

STATUS_FAILURE = 1
STATUS_BAD_INPUT = 2

# The error numbers of a full disk.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_LONGEST_LINE = 2000  # characters
_FAULTS_OF_NAMES = (errno.EACCES, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EROFS)
_CLEAR_LINE = "\r\x1b[K"
# Part of OneFlow's message when an allocation fails.
_ENGINE_OUT_OF_MEMORY = "allocate failed"


class UserError(Exception):
    """Bad usage or bad input. Its text is the line that the user sees; the exit status is 2."""


class RunError(Exception):
    """A failure that is no fault of the input, such as a full disk. The exit status is 1."""


def end_at_once(number):
    """Ends this process because of the signal `number`, with run_script's line and status. Any thread may call it."""
    print_error(128 + number, signals.Signalled(number))
    os._exit(128 + number)


def print_error(status, error, kind="error: "):
    """Prints to stderr why a script ends with `status`; `kind` comes before `error`, "" if it is not an error."""
    # A closed terminal does not change the status.
    with contextlib.suppress(OSError):
        line = f"{os.path.basename(sys.argv[0])}: {kind}{error}\n"
        if status > 128 and sys.stderr.isatty():
            line = _CLEAR_LINE + line  # of the ^C that the terminal shows
        # In one write: a ^C could otherwise appear within the line.
        sys.stderr.write(line)
        sys.stderr.flush()


def outcome_of(function):
    """Calls `function`, which returns None or an exit status; returns (exit status, one-line error or None).

    The caller handles StoppedTogether, which is not an error.
    """
    try:
        status = function() or 0
        sys.stdout.flush()
        return status, None
    except UserError as error:
        return STATUS_BAD_INPUT, one_line(error)
    except RunError as error:
        return STATUS_FAILURE, one_line(error)
    except signals.StoppedTogether:
        raise
    except signals.Signalled as signalled:
        return 128 + signalled.number, one_line(signalled)
    except BrokenPipeError:
        # The reader of the output has ended, as `| head` does.
        _send_stdout_to_nowhere()
        return STATUS_FAILURE, None
    except MemoryError as error:
        return STATUS_FAILURE, one_line(f"out of memory {error}")
    except OSError as error:
        if error.filename is None and error.errno in FULL_DISK and _stdout_is_full():
            error.filename = "standard output"
            _send_stdout_to_nowhere()
        # A bad path fails every time; other errors may pass.
        status = STATUS_BAD_INPUT if error.errno in _FAULTS_OF_NAMES else STATUS_FAILURE
        return status, one_line(describe_os_error(error))
    except RuntimeError as error:
        if _ENGINE_OUT_OF_MEMORY not in str(error):
            raise
        return STATUS_FAILURE, "out of memory: OneFlow cannot allocate what the model and a batch of it take"


def _send_stdout_to_nowhere():
    """Redirects stdout to the null device, so that later writes, also at exit, cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stdout_is_full():
    """Returns whether writing an empty line to stdout fails."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def one_line(text):
    """Returns `text` on one line, with control characters escaped, cut at 2,000 characters."""
    text = " ".join(str(text).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}..."


def some_of(names, most=5):
    """Returns the first `most` of the list `names` for a message, and ... if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def describe_os_error(error):
    """Returns `path/of/file: No space left on device` for an OSError."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text
