"""Work in several processes: Ctrl-C while they start."""

import os
import signal
import threading
import time

import pytest

from system import workers


def test_an_interrupt_that_another_thread_takes_waits_for_the_end_of_the_block():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    reached = False
    try:
        with pytest.raises(KeyboardInterrupt), workers.interrupts_delayed():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            reached = True
    finally:
        done.set()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_changes():
    before = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with workers.interrupts_delayed():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, [])) == before
