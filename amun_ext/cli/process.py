"""Signals and output streams of a command: streams may be closed, full, or of another encoding."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO, cast

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Ended(BaseException):
    """A signal has ended the command; context managers still clean up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


def launched_by_torchrun() -> bool:
    """As `torch.distributed.is_torchelastic_launched`, without the import of torch."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_other_rank() -> bool:
    """Whether torchrun has started this process as another one than the first, which speaks for all."""
    return launched_by_torchrun() and os.environ["RANK"] != "0"


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Ended` on SIGTERM and SIGHUP, unless the signal is ignored, as under nohup."""

    def end(number: int, _: FrameType | None) -> None:
        raise Ended(number)

    ours = threading.current_thread() is threading.main_thread()
    caught = [each for each in ENDING if ours and signal.getsignal(each) is signal.SIG_DFL]
    for each in caught:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in caught:
            signal.signal(each, signal.SIG_DFL)


class Output:
    """A stream whose failure does not end the command: what cannot be written is lost, and `error` says why."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None
        with contextlib.suppress(AttributeError):  # another kind of stream, which takes all letters
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, act: Callable[..., object], *arguments: str) -> None:
        if self.error is not None:
            return
        try:
            act(*arguments)
        except OSError as error:
            self.error = error
            with contextlib.suppress(OSError, ValueError):  # the rest of the buffer would fail again at exit
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def outputs(silent: bool = False) -> Iterator[Output]:
    """Make standard output and error streams whose failure does not end the command. Yields the output.

    silent: streams that go nowhere.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        out, errors = (Output(nowhere if silent or stream is None else stream) for stream in before)
        sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, errors)
        try:
            yield out
        finally:
            out.flush()
            errors.flush()
            sys.stdout, sys.stderr = before
