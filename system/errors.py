"""What can go wrong, and how it is told: the suite's errors, exit statuses and one-line messages."""

import contextlib
import errno
import os
import sys
import textwrap

from system import signals

STATUS_FAILURE = 1
STATUS_BAD_INPUT = 2

# Of an OSError where there is no room to write.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_LONGEST_LINE = 2000  # characters
_FAULTS_OF_NAMES = (errno.EACCES, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EROFS)
_CLEAR_LINE = "\r\x1b[K"
# What OneFlow says, among other things, where it gets no memory.
_ENGINE_OUT_OF_MEMORY = "allocate failed"


class UserError(Exception):
    """Bad usage or bad input. Its text is the one line the user sees; the exit status is 2."""


class RunError(Exception):
    """A run that could not be completed although its input was good (disk full, say). Exit status 1."""


def end_at_once(number):
    """Ends this process at the signal `number`, from any thread, with the line and status of run_script."""
    print_error(128 + number, signals.Signalled(number))
    os._exit(128 + number)


def print_error(status, error, kind="error: "):
    """Prints the line of a script that ends with `status` because of `error` on stderr.

    `kind` says what the line is; "" for what is no error.
    """
    # A terminal that has been closed is no reason for another status.
    with contextlib.suppress(OSError):
        line = f"{os.path.basename(sys.argv[0])}: {kind}{error}\n"
        if status > 128 and sys.stderr.isatty():
            line = _CLEAR_LINE + line  # of the ^C that the terminal shows
        # At once, lest another ^C be shown before the line's end.
        sys.stderr.write(line)
        sys.stderr.flush()


def outcome_of(function):
    """(exit status, None or what went wrong, as one line) of `function()`, which returns None or an exit status.

    StoppedTogether, with which nothing has gone wrong, is left to the caller.
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
        # The reader of our output is gone (`| head`).
        _send_stdout_to_nowhere()
        return STATUS_FAILURE, None
    except MemoryError as error:
        return STATUS_FAILURE, one_line(f"out of memory {error}")
    except OSError as error:
        if error.filename is None and error.errno in FULL_DISK and _stdout_is_full():
            error.filename = "standard output"
            _send_stdout_to_nowhere()
        # What was named cannot be reached, now and whenever it is tried again.
        status = STATUS_BAD_INPUT if error.errno in _FAULTS_OF_NAMES else STATUS_FAILURE
        return status, one_line(describe_os_error(error))
    except RuntimeError as error:
        if _ENGINE_OUT_OF_MEMORY not in str(error):
            raise
        return STATUS_FAILURE, "out of memory: OneFlow cannot allocate what the model and a batch of it take"


def _send_stdout_to_nowhere():
    """For what is still to be written, at exit too, where standard output takes nothing any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stdout_is_full():
    """Whether standard output does not even take an empty line."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def one_line(text):
    """`text` on one line, without characters that a terminal would not print but obey, and not endless."""
    text = " ".join(str(text).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}..."


def wrapped(text):
    """`text` in lines of 80 columns, broken at blanks, the further ones indented."""
    return textwrap.fill(text, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def warning_line(text):
    """`script.py: warning: text`, on one line: for what is not as it should be, although the script goes on."""
    return one_line(f"{os.path.basename(sys.argv[0])}: warning: {text}")


def describe_os_error(error):
    """`path/of/file: No space left on device` for an OSError."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text
