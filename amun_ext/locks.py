"""Lock files: one process at a time, released when a process dies."""

import contextlib
import errno
import fcntl
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from amun_ext.validation import InputError, require

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # errors of file systems without locks
POLL = 0.1  # seconds between two looks at the link of another process
BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextlib.contextmanager
def locked(path: Path, what: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, which is removed afterwards; that of a dead process is taken over.

    The lock file has the number of the process. On a file system without locks a symbolic link beside it names the
    process that holds it. A link from another machine, or from before a restart of this one, must be removed by hand.

    InputError if another process has the lock of `what`; with `wait` it waits until that one is done.
    """
    file = _open(path, what, wait)
    try:
        yield
    finally:
        _holder(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        os.close(file)


def _open(path: Path, what: Path, wait: bool) -> int:
    require(not path.is_symlink(), "out", "without symbolic links in place of lock files", path)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _lock(file, path, what, wait)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                with contextlib.suppress(OSError):  # a full disk
                    os.truncate(file, 0)
                    os.pwrite(file, str(os.getpid()).encode(), 0)  # for the message to others
                return file
        except BaseException:
            os.close(file)
            raise
        _holder(path).unlink(missing_ok=True)  # ours
        os.close(file)  # another process has removed it before we locked it


def _lock(file: int, path: Path, what: Path, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise _in_use(what, os.pread(file, 20, 0).decode("ascii", "replace")) from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise OSError(error.errno, error.strerror, str(path)) from error
        warnings.warn(
            f"the file system of {path.parent} has no locks; {_holder(path).name} is used instead", stacklevel=6
        )
        _make_holder(_holder(path), what, wait)


def _in_use(what: Path, pid: str, more: str = "") -> InputError:
    used = f", used by process {pid}" if pid.isdecimal() else ""  # it may not have written its number yet
    return InputError(f"out must not be in use by another process, got {what}{used}{more}")


def _holder(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")


def _make_holder(holder: Path, what: Path, wait: bool) -> None:
    """A link, because it is created with its content: the process, and the id of the machine's boot."""
    boot = BOOT.read_text().strip()
    while True:
        with contextlib.suppress(FileExistsError):
            os.symlink(f"{os.getpid()}@{boot}", holder)
            return
        owner = _owner(holder)
        pid, _, its_boot = owner.partition("@")
        known = its_boot == boot and pid.isdecimal()
        if not owner:
            continue
        if known and not _is_alive(int(pid)):
            _remove_dead(holder, owner, what, wait)
        elif known and wait:
            time.sleep(POLL)
        else:
            raise _in_use(what, pid, f" (if none is running, remove {holder})")


def _owner(holder: Path) -> str:
    """What the link says; empty without one."""
    try:
        return os.readlink(holder)
    except FileNotFoundError:
        return ""


def _remove_dead(holder: Path, owner: str, what: Path, wait: bool) -> None:
    """Under a link of its own: of two processes that do this, the later one would remove the new link of the other."""
    _make_holder(_holder(holder), what, wait)
    try:
        if _owner(holder) == owner:
            holder.unlink()
    finally:
        _holder(holder).unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        pass
    return True
