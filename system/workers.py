"""Worker processes with one progress bar. None of them outlives the run."""

import collections
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from system.errors import RunError
from system.signals import SIGNALS

# Of run_in_order: those that wait for an earlier one, which takes longer, included.
TASKS_PER_WORKER = 4


def run_tasks(function, tasks, workers, bar):
    """Runs `function(*task, report)` for every task in up to `workers` processes; yields results as tasks finish.

    `report(n)` advances the tqdm `bar` by n. If a task fails or the caller is interrupted, all workers are stopped.
    """
    workers = min(workers, len(tasks))
    if workers == 1:
        for task in tasks:
            yield function(*task, bar.update)
        return
    progress = multiprocessing.get_context("spawn").Value("q", 0)
    with open_pool(workers, progress) as pool:
        with interrupts_delayed():
            # Starts the processes, which receive Ctrl-C until start_worker makes them ignore it.
            pending = {pool.submit(run_task, function, task) for task in tasks}
        while pending:
            finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            bar.update(progress.value - bar.n)
            for future in finished:
                yield future.result()


def run_in_order(function, tasks, workers):
    """Runs `function(*task)` for every task of an iterable in `workers` processes; yields results in their order.

    Tasks and results are to be small: what does not fit into a pipe blocks the end of the pool.
    Takes only a few tasks ahead, so `tasks` may be larger than the memory. If a task fails or the caller is
    interrupted, all workers are stopped.
    """
    if workers == 1:
        yield from itertools.starmap(function, tasks)
        return
    with open_pool(workers) as pool:
        pending = collections.deque()
        for task in tasks:
            with interrupts_delayed():
                # May start a process.
                pending.append(pool.submit(function, *task))
            if len(pending) == TASKS_PER_WORKER * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextlib.contextmanager
def open_pool(workers, progress=None):
    """Yields a ProcessPoolExecutor whose processes are stopped if the block fails or is interrupted.

    `progress` is a shared number for `report_progress`. Raises RunError if a process is killed from outside.
    """
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (progress,)) as pool:
        try:
            yield pool
        except BaseException as error:
            for process in multiprocessing.active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise RunError(
                    "a worker process was killed, perhaps for lack of memory; run the same command again"
                ) from None
            raise


@contextlib.contextmanager
def interrupts_delayed():
    """Delays signals until the end of the block, so that no process stays half started.

    Processes started within the block do not receive Ctrl-C.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    # Another thread may receive it, and Python then calls the handler in this one.
    received = []
    before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if received:
            signal.raise_signal(received[0])


# In a worker process: the number shared with its parent.
worker_progress = None


def start_worker(progress):
    """Initialises a worker process: it ignores Ctrl-C, and ends when its parent ends."""
    global worker_progress
    worker_progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """Waits until the parent process has ended, then ends this process."""
    multiprocessing.parent_process().join()
    os._exit(1)


def run_task(function, task):
    """Runs a task in a worker process."""
    return function(*task, report_progress)


def report_progress(number):
    """Advances the progress bar of the parent process by `number`."""
    with worker_progress.get_lock():
        worker_progress.value += number
