"""Memory of freed tensors, kept for the next batch."""

import contextlib
import ctypes
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # glibc's malloc.h
WORK = {TRIM_THRESHOLD: 2**31 - 1, MMAP_MAX: 0}
REST = {TRIM_THRESHOLD: 2**26, MMAP_THRESHOLD: 2**25, MMAP_MAX: 2**16}  # the largest that glibc chooses by itself


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """The process keeps freed memory, and gives it back at the end.

    Without this glibc gives back each large block, and the next batch makes the kernel clear all its pages again: up to
    a quarter of a training's time on a CPU. With another C library nothing changes.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    try:
        _set(libc, WORK)
        yield
    finally:
        _set(libc, REST)
        libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)
