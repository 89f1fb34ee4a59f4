r"""Signals are noted until what runs has come to a good place; files are replaced in one step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

NOTED = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """
    A draft beside a file, which takes the file's place once it is written.

    Until then, and if writing fails or the process is killed, the file stays what it was.
    """
    path = Path(path)
    # Of this process, so that two of them never write into one draft
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            yield draft
            # For writing, as Windows asks for it: a power cut could leave an empty file otherwise
            with open(draft, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A file that is written in a way that keeps what was there before; errors that say so."""
    try:
        yield
    # torch.save tells of a full disk by a RuntimeError
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{str(path)!r} could not be written, what was there before is kept: free the disk or "
            f"choose a folder that is writable ({error})."
        ) from error


class Interrupted(SystemExit, KeyboardInterrupt):
    """Ctrl-C, obeyed: a script ends with exit status 130 and no traceback, a notebook goes on."""


class Signals:
    r"""
    Context in which SIGINT and SIGTERM are noted; a second SIGINT interrupts at once.

    On leaving, the handlers of before are back and are told of what came. Outside the main thread,
    where Python allows no handlers, nothing is noted.
    """

    def __init__(self):
        #: number of the signal that came, 0 for none
        self.received = 0
        self._former = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in NOTED:
                # A process in the background of a shell ignores Ctrl-C, and shall go on doing so
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._note)
            child: int | None = getattr(signal, "SIGCHLD", None)  # not on Windows
            if child and callable(signal.getsignal(child)):
                self._former[child] = signal.signal(child, self._ended)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def _ended(self, number: int, frame: FrameType | None) -> None:
        """A process ended, such as a worker of another loader, at which torch raises an error."""
        if not self.received:
            self._former[number](number, frame)

    def __exit__(self, kind, *_) -> None:
        for number, handler in self._former.items():
            # Torch may have put its own handler in place meanwhile. At the end of the program it
            # shall not complain of workers that ended first
            last = number not in NOTED and self.received == signal.SIGTERM
            if signal.getsignal(number) in (self._note, self._ended) and not last:
                signal.signal(number, handler or signal.SIG_DFL)
        handler = self._former.get(self.received)
        if callable(handler) and handler is not signal.default_int_handler:
            handler(self.received, None)
        if self.received and kind is None:
            raise obeyed(self.received)


def obeyed(number: int) -> BaseException:
    """What to raise for a signal: the end of the program, with its exit status."""
    end = Interrupted if number == signal.SIGINT else SystemExit
    return end(128 + number)
