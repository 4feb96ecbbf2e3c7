"""Results that are whole or absent, whatever ends the process; and one process at a time."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from amun_ext import files, locks
from amun_ext.validation import InputError

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "fcntl.flock")
RESULTS = {"model": "new", "report": "new", "page": "new"}


def put(folder: Path, results: dict[str, str | float] = RESULTS) -> None:
    with files.workplace(folder, "test") as place, files.atomic_folder(folder, place) as made:
        for name, text in results.items():
            (files.write_text if isinstance(text, str) else files.write_json)(made / name, text)


def read(folder: Path) -> dict[str, str]:
    """What a reader finds, who follows links."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and path.name[0] != "."}


def in_child(act: Callable[[], None], kill_at: int) -> bool:
    """Whether `act` comes to its end in a process that is killed before its file-system event of this number."""
    child = os.fork()
    if child == 0:
        left = kill_at

        def hook(name: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            writes = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or name in EVENTS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        act()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return status == 0


def kill_everywhere(folder: str, before: str) -> None:
    """In a process of one thread, because it forks."""
    old = dict.fromkeys(before.split(), "old")
    number, ended = 0, False
    while not ended:
        out = Path(folder) / f"{before} {number}"
        if old:
            put(out, old)
        out.mkdir(exist_ok=True)
        (out / "notes").write_text("of the user")
        ended = in_child(lambda out=out: put(out), number)
        found = read(out)
        assert found.pop("notes") == "of the user"
        assert found in (old, {**old, **RESULTS}), number
        assert not [path for path in out.rglob("*") if path.is_symlink() and path.parent == out and ended]
        put(out, {"other": "next"})
        assert {**read(out), "other": "next"} == {**found, "notes": "of the user", "other": "next"}, number
        put(out)
        assert read(out) == {**old, **RESULTS, "notes": "of the user", "other": "next"}
        assert not [path.name for path in out.iterdir() if path.is_symlink() or path.name[0] == "." or path.is_dir()]
        number += 1
    assert number > 30


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "model report page", "model other"])
def test_a_kill_before_any_event_shows_all_old_or_all_new(tmp_path: Path, before: str) -> None:
    here = Path(__file__).parent
    command = f"import test_files as t; t.kill_everywhere({str(tmp_path)!r}, {before!r})"
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


class TestAllOrNone:
    def test_a_failure_leaves_the_old(self, tmp_path: Path) -> None:
        put(tmp_path, {"model": "old"})
        with pytest.raises(ValueError, match="JSON compliant"):
            put(tmp_path, {"model": "new", "report": float("nan")})
        assert read(tmp_path) == {"model": "old"}
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    @pytest.mark.parametrize("stopped", ["link", "symlink_to"])
    def test_an_interrupt_in_the_middle_leaves_no_link(self, tmp_path: Path, monkeypatch, stopped: str) -> None:
        put(tmp_path, {"model": "old", "report": "old"})
        calls = []

        def end(*arguments: object) -> None:
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return before(*arguments)

        owner = os if stopped == "link" else Path
        before = getattr(owner, stopped)
        monkeypatch.setattr(owner, stopped, end)
        with pytest.raises(KeyboardInterrupt):
            put(tmp_path)
        assert read(tmp_path) == {"model": "old", "report": "old"}
        assert not [path for path in tmp_path.iterdir() if path.is_symlink()]
        put(tmp_path)
        assert read(tmp_path) == RESULTS

    @pytest.mark.parametrize("missing", ["link", "symlink"])
    def test_a_file_system_without_links(self, tmp_path: Path, monkeypatch, missing: str) -> None:
        def refused(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        put(tmp_path, {"model": "old"})
        monkeypatch.setattr(os, missing, refused)
        put(tmp_path)
        assert read(tmp_path) == RESULTS
        assert {path.name for path in tmp_path.iterdir()} == {*RESULTS}

    def test_not_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="without symbolic links"):
            put(tmp_path)
        assert not (tmp_path / "elsewhere").exists()
        assert (tmp_path / "model").is_symlink()

    def test_as_readable_as_any_other_file(self, tmp_path: Path) -> None:
        put(tmp_path)
        (other := tmp_path / "other").touch()
        assert (tmp_path / "model").stat().st_mode == other.stat().st_mode


class TestWorkplace:
    def test_stays_after_a_failure_unless_empty(self, tmp_path: Path) -> None:
        def fail(*kept: str) -> None:
            with files.workplace(tmp_path / "new", "test") as place:
                files.keep_only(place, "a request")
                for name in kept:
                    (place / name).touch()
                raise RuntimeError

        for kept in ([], ["examples"]):
            with pytest.raises(RuntimeError):
                fail(*kept)
            assert (tmp_path / "new").exists() == bool(kept)
        with files.workplace(tmp_path / "new", "test") as place:
            files.keep_only(place, "a request")
            assert (place / "examples").exists()
            with pytest.raises(InputError, match="another stopped request"):
                files.keep_only(place, "another")
            files.keep_only(place, "another", overwrite=True)
            assert not (place / "examples").exists()
        assert not [*(tmp_path / "new").iterdir()]

    def test_partial_files_of_a_dead_run_are_removed(self, tmp_path: Path) -> None:
        (left := tmp_path / "unfinished-test/.model.abc.partial").mkdir(parents=True)
        (left.parent / files.NOTE).write_bytes(files.NOTE_TEXT)
        (left / "half").touch()
        with files.workplace(tmp_path, "test"):
            assert not left.exists()

    @pytest.mark.parametrize("note", [b"", files.NOTE_TEXT[:10], files.NOTE_TEXT])
    def test_a_folder_with_an_unfinished_note_is_used(self, tmp_path: Path, note: bytes) -> None:
        (place := tmp_path / "unfinished-test").mkdir()
        (place / files.NOTE).write_bytes(note)
        with files.workplace(tmp_path, "test"):
            assert (place / files.NOTE).read_bytes() == files.NOTE_TEXT
        assert not [*tmp_path.iterdir()]

    def test_two_commands_run_in_one_folder_but_not_one_twice(self, tmp_path: Path) -> None:
        refused = pytest.raises(InputError, match=rf"got .*unfinished-test, used by process {os.getpid()}")
        with files.workplace(tmp_path, "test"), files.workplace(tmp_path, "another"), refused:
            put(tmp_path)
        put(tmp_path)


def test_a_file_system_without_fsync(tmp_path: Path, monkeypatch) -> None:
    def failing(number: int) -> Callable[[int], None]:
        def fsync(_: int) -> None:
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    files.write_text(tmp_path / "a", "here")
    assert (tmp_path / "a").read_text() == "here"
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match=r"Input/output error: '.*b'"):
        files.write_text(tmp_path / "b", "here")


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    files.write_text(tmp_path / "page", "caf\udce9 \u2603")
    assert (tmp_path / "page").read_bytes() == b"caf\\udce9 \xe2\x98\x83"


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    """safetensors puts metadata into an order of its own, another one each time."""
    metadata = {f"key {number}": '"\u2603\n\x07' for number in range(20)}
    for number in range(3):
        files.write_tensors(tmp_path / str(number), {"b": torch.ones(3), "a": torch.zeros(2)}, metadata)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(3)}) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == metadata
        assert file.get_tensor("b").tolist() == [1, 1, 1]
        assert file.get_tensor("a").tolist() == [0, 0]


class TestLock:
    def test_not_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
        with (
            pytest.raises(InputError, match="out must be without symbolic links"),
            locks.locked(tmp_path / "lock", tmp_path),
        ):
            pass
        assert not (tmp_path / "elsewhere").exists()

    def test_a_lock_file_removed_before_it_is_locked_is_opened_again(self, tmp_path: Path, monkeypatch) -> None:
        """By the process that had it, between our look at it and our lock."""
        path, flock, calls = tmp_path / "lock", locks.fcntl.flock, []

        def late(file: int, how: int) -> None:
            calls.append(file)
            if len(calls) == 1:
                path.unlink()
            flock(file, how)

        monkeypatch.setattr(locks.fcntl, "flock", late)
        with locks.locked(path, tmp_path):
            assert path.exists()
        assert len(calls) == 2
        assert not path.exists()


@pytest.mark.filterwarnings("ignore:the file system of .* has no locks")
class TestWithoutLocks:
    @pytest.fixture(autouse=True)
    def _no_flock(self, monkeypatch) -> None:
        def refused(*_: object) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(locks.fcntl, "flock", refused)

    def test_a_link_is_used_instead(self, tmp_path: Path) -> None:
        with files.workplace(tmp_path, "test"), pytest.raises(InputError, match=f"by process {os.getpid()} "):
            put(tmp_path)
        assert not [*tmp_path.iterdir()]

    def test_warns_with_the_folder(self, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match=f"the file system of {tmp_path} has no locks"):
            put(tmp_path)

    def test_the_link_of_a_dead_process_is_taken_over(self, tmp_path: Path) -> None:
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        holder = tmp_path / ".unfinished-test.lock.holder"
        holder.symlink_to(f"{child.pid}@{locks.BOOT.read_text().strip()}")
        put(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*RESULTS}

    def test_a_link_that_another_process_has_taken_over_stays(self, tmp_path: Path, monkeypatch) -> None:
        """Between our look at the link of the dead one and its removal."""
        boot, is_alive = locks.BOOT.read_text().strip(), locks._is_alive
        holder = tmp_path / ".unfinished-test.lock.holder"
        holder.symlink_to(f"{2**40}@{boot}")

        def late(pid: int) -> bool:
            if pid != 2**40:
                return is_alive(pid)
            holder.unlink()
            holder.symlink_to(f"{os.getpid()}@{boot}")
            return False

        monkeypatch.setattr(locks, "_is_alive", late)
        with pytest.raises(InputError, match="in use by another process"):
            put(tmp_path)
        assert os.readlink(holder) == f"{os.getpid()}@{boot}"
        assert [path for path in tmp_path.iterdir() if path.is_symlink()] == [holder]

    def test_waits_for_another_process(self, tmp_path: Path, monkeypatch) -> None:
        holder, slept = tmp_path / "lock.holder", []
        holder.symlink_to(f"{os.getpid()}@{locks.BOOT.read_text().strip()}")

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                holder.unlink()

        monkeypatch.setattr(locks.time, "sleep", sleep)
        with locks.locked(tmp_path / "lock", tmp_path, wait=True):
            assert len(slept) == 3
        assert not [*tmp_path.iterdir()]

    def test_a_link_that_its_process_removes_is_no_error(self, tmp_path: Path, monkeypatch) -> None:
        holder, readlink = tmp_path / ".unfinished-test.lock.holder", os.readlink
        holder.symlink_to("1@another-boot")

        def late(path: Path) -> str:
            holder.unlink(missing_ok=True)
            return readlink(path)

        monkeypatch.setattr(os, "readlink", late)
        put(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*RESULTS}

    @pytest.mark.parametrize("told", ["1@another-boot", "ours@", "nonsense"])
    def test_the_link_of_an_unknown_process_is_not_taken_over(self, tmp_path: Path, told: str) -> None:
        holder = tmp_path / ".unfinished-test.lock.holder"
        holder.symlink_to(told.replace("ours", str(os.getpid())))
        with pytest.raises(InputError, match=f"remove {holder}"):
            put(tmp_path)
        assert holder.is_symlink()

    def test_another_error_names_the_file(self, tmp_path: Path, monkeypatch) -> None:
        def broken(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(locks.fcntl, "flock", broken)
        with pytest.raises(OSError, match=r"Input/output error: .*unfinished-test\.lock"):
            put(tmp_path)
