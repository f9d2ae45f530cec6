"""Work in several processes, with one progress bar, of which none outlives the run."""

import contextlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from system.errors import RunError
from system.signals import SIGNALS


def run_tasks(function, tasks, workers, bar):
    """Yields `function(*task, report)` for every task, as they end, in up to `workers` processes.

    `report(n)` moves the tqdm `bar` on by n. When one task fails, or the caller is interrupted, the others are stopped.
    """
    workers = min(workers, len(tasks))
    if workers == 1:
        for task in tasks:
            yield function(*task, bar.update)
        return
    progress = multiprocessing.get_context("spawn").Value("q", 0)
    with open_pool(workers, progress) as pool:
        with interrupts_delayed():
            # This starts the processes, which would be interrupted as well before start_worker has them ignore it.
            pending = {pool.submit(run_task, function, task) for task in tasks}
        while pending:
            finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            bar.update(progress.value - bar.n)
            for future in finished:
                yield future.result()


@contextlib.contextmanager
def open_pool(workers, progress=None):
    """A ProcessPoolExecutor whose processes are stopped at once when the block fails or is interrupted.

    `progress` is a shared number for `report_progress`. Raises RunError if a process was killed from outside.
    """
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (progress,)) as pool:
        try:
            yield pool
        except BaseException as error:
            for process in multiprocessing.active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise RunError(
                    "a worker process was killed, for lack of memory perhaps; run the same command again"
                ) from None
            raise


@contextlib.contextmanager
def interrupts_delayed():
    """A signal within the block counts at its end, so that no process stays half started.

    The processes that are started in it do not get Ctrl-C.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    # Where another thread takes it, Python still calls the handler in this one.
    noted = []
    before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if noted:
            signal.raise_signal(noted[0])


# In a worker process: the number it shares with its parent.
worker_progress = None


def start_worker(progress):
    """Makes a process fit for work: it leaves Ctrl-C to its parent, and ends when the parent is killed."""
    global worker_progress
    worker_progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """Waits for the end of the parent process, however it comes, and ends this one."""
    multiprocessing.parent_process().join()
    os._exit(1)


def run_task(function, task):
    """Runs a task in a worker process."""
    return function(*task, report_progress)


def report_progress(number):
    """Moves the progress bar of the parent process on."""
    with worker_progress.get_lock():
        worker_progress.value += number
