"""One process at a time: a lock file, which a dead process leaves to the next."""

import contextlib
import errno
import fcntl
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from amun_ext.validation import InputError

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # what a file system answers that has none
BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextlib.contextmanager
def locked(path: Path, what: Path) -> Iterator[None]:
    """Ours alone inside. The lock is the file `path`, which is removed afterwards; a dead process's is taken over.

    Where the file system has no locks, a symbolic link beside it says who is at it. That of another machine, or of
    before a restart of this one, may be a dead process's and is to be removed by hand.

    InputError when another process has it, which calls it that of `what`.
    """
    file = _opened(path, what)
    try:
        yield
    finally:
        _holder(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        os.close(file)


def _opened(path: Path, what: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _lock(file, path, what)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # it was removed by the one who had it, between our look at it and now


def _lock(file: int, path: Path, what: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"out must not be in use by another process, got {what}") from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise OSError(error.errno, error.strerror, str(path)) from error
        warnings.warn(
            f"the file system of {path.parent} has no locks; {_holder(path).name} is used instead", stacklevel=6
        )
        _hold(_holder(path), what)


def _holder(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")


def _hold(holder: Path, what: Path) -> None:
    """The link is made with what it says, at once. It names a process and the start of the machine."""
    boot = BOOT.read_text().strip()
    while True:
        try:
            os.symlink(f"{os.getpid()}@{boot}", holder)
            return
        except FileExistsError:
            pid, _, theirs = os.readlink(holder).partition("@")
        if theirs != boot or not pid.isdecimal() or _lives(int(pid)):
            actual = f"{what} (if none is running, remove {holder})"
            raise InputError(f"out must not be in use by another process, got {actual}")
        holder.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
