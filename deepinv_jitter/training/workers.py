r"""Worker processes of data loaders, which leave the signals to the process that started them."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import worker

from .preemption import NOTED

_started: WeakSet = WeakSet()  # iterators of persistent workers that leave the signals


class Shielded:
    """
    A data loader whose workers leave SIGINT and SIGTERM to this process.

    Schedulers and terminals send signals to all processes of a job. Workers that ended at once
    would take with them what this process needs to end in good order, or make torch raise an error
    in the middle of a batch. The loader itself is as before after every call. What is no
    ``DataLoader`` has no workers known here, and is used as it is.
    """

    def __init__(self, loader: DataLoader):
        self.plain = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self.plain, name)

    # So that the host checks its data set
    @property  # type: ignore[misc]  # typeshed gives object a setter, which is never called here
    def __class__(self) -> type:
        return type(self.plain)

    def __len__(self) -> int:
        return len(self.plain)

    def __iter__(self) -> Iterator:
        loader = self.plain
        if not isinstance(loader, DataLoader) or loader.num_workers == 0:
            return iter(loader)
        if loader.persistent_workers and loader._iterator in _started:
            # The draws of a new iterator, so that a resumed run, whose is new, draws the same
            iter(loader._index_sampler)
            torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
            return iter(loader)
        loader._iterator = None  # workers from before would end
        former = loader.worker_init_fn
        loader.worker_init_fn = functools.partial(_begin, former)
        try:
            with _held_back(loader.multiprocessing_context or multiprocessing):
                iterator = iter(loader)
        finally:
            loader.worker_init_fn = former
        _started.add(iterator)
        return iterator


def plain(loader: object) -> object:
    """The loader itself, without what shields its workers."""
    return loader.plain if type(loader) is Shielded else loader


@contextmanager
def _held_back(context) -> Iterator[None]:
    """Processes that start in here do not get the signals from their first moment on."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    from multiprocessing import forkserver, resource_tracker  # not on Windows

    method = context.get_start_method()
    # Helpers of multiprocessing, started before: they would let the signals through again, or
    # hold them back from all other processes of the program
    if method != "fork":
        resource_tracker.ensure_running()
    if method == "forkserver":
        forkserver.ensure_running()
    former = signal.pthread_sigmask(signal.SIG_BLOCK, NOTED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _begin(init: Callable[[int], None] | None, number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    assert main is not None  # of a worker
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, NOTED)
        threading.Thread(target=_obey, args=(main.pid,), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        # macOS: torch's handler ends the worker, whoever sends SIGTERM
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NOTED)
    if os.getppid() != main.pid:
        # A fork server gets the signals, too, and torch takes its end for that of the program
        vars(worker)["ManagerWatchdog"] = multiprocessing.parent_process
    if init is not None:
        init(number)


def _obey(main: int) -> None:
    """End at a SIGTERM of the main process alone, which sends it to workers that hang."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != main:
        pass
    os._exit(0)
