"""What is on disk after a kill: each command is killed before every one of its file-system events, and run again.

A kill is SIGKILL, before each file that is opened for writing, renamed, linked, locked or removed and each folder that
is made or removed; tensors are written by a library without such events: half a file of its own stands for them.
After the kill the folder must show all old results or all new ones. After the second run everything must be what it is
without a kill, the tensors to the bit, and nothing else may be there. Times and dates are not compared, nor are pages,
which have them.

    python benchmarks/kills.py [COMMAND ...] [--every N] [--json PATH]

With --chain a chain of three requests on the digits is killed at random moments of its processor time, and compared
with an undisturbed chain after each request.

    python benchmarks/kills.py --chain 200 [--minutes 25] [--json PATH]
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: only a process of one thread can be forked

import numpy as np
import torch
from safetensors.torch import save_file

from amun_ext import cli, files
from amun_ext.auditing.result import FILES as AUDIT
from amun_ext.deletion import ledger
from amun_ext.deletion.request import warm_up
from amun_ext.deletion.results import RESULTS
from amun_ext.report import figures, html  # noqa: F401, now, or every child would import what they need
from amun_ext.validation import InputError

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "fcntl.flock")
MODEL = "--model original.safetensors --data data.npz"
TIMES = ("date", "seconds", "stages", "seconds_by_digest", "FT SE seconds", "speed-up", "versions", "ledger_line")
MINE = "notes.txt"
CHAIN = {  # folder -> the request that writes it
    "first": "forget --model original.safetensors --ids 3,5,8",
    "second": "forget --model first/model.safetensors --ids 20-29",
    "third": "forget --model second/model.safetensors --ids 7,9 --method ft",
}
ON_DIGITS = "--data digits --epochs 1 --quiet"
IN_A_ROW = 4  # kills of a request before it may finish


@dataclass(frozen=True)
class Case:
    """A command that writes `shown` into the folder `out`; `before` is run there first."""

    command: str
    shown: tuple[str, ...]
    before: str | None = None


CASES = {
    "train": Case(
        "train --data data.npz --model small-cnn --width 4 --epochs 2 --lr 0.1 --out out/net.safetensors",
        ("net.safetensors",),
    ),
    "forget": Case(f"forget {MODEL} --ids 3,5 --method amun+salun --retrain --epochs 1 --out out", RESULTS),
    "forget --overwrite": Case(
        f"forget {MODEL} --ids 7 --epochs 1 --overwrite --out out",
        RESULTS,
        f"forget {MODEL} --ids 5 --epochs 1 --out out",
    ),
    "forget, a later request": Case(
        "forget --model first/model.safetensors --data data.npz --ids 7,9 --epochs 1 --out out",
        RESULTS,
        f"forget {MODEL} --ids 3,5 --epochs 1 --out first",
    ),
    "prepare": Case(f"prepare {MODEL} --folds 2 --out out/targets.safetensors", ("targets.safetensors",)),
    "forget by distillation": Case(
        f"forget {MODEL} --ids 3,5 --method distill --targets targets.safetensors --epochs 1 --out out",
        RESULTS,
        f"prepare {MODEL} --folds 2 --out targets.safetensors",
    ),
    "search": Case(f"search {MODEL} --count 9 --methods ddn,ffgsm --out out", ("searches.json", "searches.html")),
    "references": Case(f"references {MODEL} --num-models 2 --out out", ()),
    "shadows": Case(f"shadows {MODEL} --ids 3,5,8,9 --num-models 6 --epochs 1 --out out", ()),
    "compare": Case(
        f"compare {MODEL} --ids 3,5,8 --methods ft,amun --seeds 1 --settings with --out out",
        ("compare.json", "compare.html"),
    ),
    "tune": Case(
        f"tune {MODEL} --ids 3,5,8 --methods ft,salun --trials 3 --epochs 1 --objective retrain --out out",
        ("tuned.json", "trials.json", "tuning.html"),
    ),
    "audit": Case(f"audit {MODEL} --original original.safetensors --ids 3,5,8 --retrain 2 --out out", AUDIT),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"some of {', '.join(CASES)} (default: all)")
    parser.add_argument("--every", type=int, default=1, help="kill at every Nth event only (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the counts there")
    parser.add_argument("--chain", type=int, metavar="KILLS", help="kill a chain of requests as often, at random")
    parser.add_argument("--minutes", type=float, default=25, help="of --chain, at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of --chain (default: %(default)s)")
    options = parser.parse_args()
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.chain:
            name = "a chain of three requests, at random moments"
            told[name] = chain(Path(folder), options.chain, options.minutes, options.seed)
            print(name, json.dumps(told[name]), flush=True)
        for name in options.commands or (() if options.chain else CASES):
            told[name] = campaign(Path(folder), name, options.every)
            print(name, json.dumps(told[name]), flush=True)
    if options.json:
        before = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps({**before, **told}, indent=2) + "\n", encoding="utf-8")
    return int(any(each["faults"] for each in told.values()))


def campaign(folder: Path, name: str, every: int = 1, first: int = 1) -> dict[str, Any]:
    """Kill one command at its events `first`, `first` + `every`, ... Returns the counts, and what went wrong."""
    case, start = CASES[name], time.perf_counter()
    optimized_copy = prepare(folder)
    if case.before is not None:
        assert run(optimized_copy, case.before)[0] == 0
    (optimized_copy / "out" / MINE).write_text("of the user")
    alone = clone(optimized_copy, "alone")
    status, events = run(alone, case.command)
    assert status in (0, 3), (alone / "log").read_text()
    states = [shown(optimized_copy, case), shown(alone, case)]
    expected, faults = contents(alone), []
    for number in range(first, events + 1, every):
        place = clone(optimized_copy, "killed")
        killed, _ = run(place, case.command, kill_at=number)
        if killed != -signal.SIGKILL:
            break  # there were fewer this time
        if shown(place, case) not in states:
            faults.append(f"{number}: neither old nor new")
        again, _ = run(place, case.command)
        if again != status:
            faults.append(f"{number}: status {again}: {(place / 'log').read_text()[-300:]}")
        elif (found := contents(place)) != expected:
            differ = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
            faults.append(f"{number}: {', '.join(differ)}")
    kills = len(range(first, events + 1, every))
    return {"events": events, "kills": kills, "faults": faults, "seconds": round(time.perf_counter() - start)}


def chain(folder: Path, wanted: int, minutes: float, seed: int) -> dict[str, Any]:
    """Kill CHAIN as often as `wanted`, at moments drawn by the seed. Returns the counts, and what went wrong."""
    start, random, faults, kills = time.perf_counter(), np.random.default_rng(seed), [], 0
    (prepared := folder / "prepared").mkdir()
    assert run(prepared, f"train {ON_DIGITS} --model small-cnn --width 4 --out original.safetensors")[0] == 0
    expected, took, alone = {}, {}, clone(prepared, "alone")
    for out, command in CHAIN.items():
        status, took[out] = run(alone, f"{command} {ON_DIGITS} --out {out}", seconds=3600)
        assert status == 0, (alone / "log").read_text()
        expected[out] = unbound(contents(alone), alone)
    while kills < wanted and time.perf_counter() - start < 60 * minutes:
        place = clone(prepared, "killed")
        for out, command in CHAIN.items():
            for _ in range(IN_A_ROW):
                status, _ = run(
                    place, f"{command} {ON_DIGITS} --out {out}", seconds=took[out] * random.uniform(0.01, 1)
                )
                kills += status == -signal.SIGPROF
                there = [name for name in RESULTS if (place / out / name).exists()]
                if there and (len(there) < len(RESULTS) or not valid(place / out)):
                    faults.append(f"{kills}: {out}: neither old nor new")
            status, _ = run(place, f"{command} {ON_DIGITS} --out {out}")
            if status != 0 or unbound(contents(place), place) != expected[out]:
                faults.append(f"{kills}: {out}: status {status}, or other files than without a kill")
    return {"events": "-", "kills": kills, "faults": faults, "seconds": round(time.perf_counter() - start)}


def valid(folder: Path) -> bool:
    """Whether its ledger is that of its model and record, and bound line by line."""
    try:
        return bool(ledger.read(folder))
    except InputError:
        return False


def unbound(found: dict[str, str], folder: Path) -> dict[str, str]:
    """The contents, with ledgers compared without the hashes of lines before, which have dates: `valid` checks them."""
    for path in folder.glob(f"*/{ledger.FILE}"):
        lines = [{**json.loads(line), ledger.PREVIOUS: ""} for line in path.read_text().splitlines()]
        text = json.dumps([without_times(line) for line in lines], sort_keys=True)
        found[str(path.relative_to(folder))] = f"{valid(path.parent)} {hashlib.sha256(text.encode()).hexdigest()}"
    return found


def prepare(folder: Path) -> Path:
    """A folder with data, a model and an empty folder for results."""
    optimized_copy = folder / "prepared"
    shutil.rmtree(optimized_copy, ignore_errors=True)
    (optimized_copy / "out").mkdir(parents=True)
    random = np.random.default_rng(0)
    data = {}
    for part, count in (("train", 40), ("test", 24)):
        data[f"{part}_labels"] = np.arange(count) % 4
        noise = random.integers(0, 128, (count, 8, 8, 1))
        data[f"{part}_images"] = (noise + 40 * data[f"{part}_labels"][:, None, None, None]).astype(np.uint8)
    np.savez(optimized_copy / "data.npz", **data)
    train = "train --data data.npz --model small-cnn --width 4 --epochs 1 --lr 0.1 --out original.safetensors"
    assert run(optimized_copy, train)[0] == 0, (optimized_copy / "log").read_text()
    return optimized_copy


def clone(optimized_copy: Path, name: str) -> Path:
    place = optimized_copy.with_name(name)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(optimized_copy, place)
    return place


def run(folder: Path, command: str, kill_at: int | None = None, seconds: float = 0) -> tuple[int, float]:
    """The status of a command in the folder, or minus the signal that ended it; and how many events it had.

    seconds: of processor time, after which the system ends it at once (SIGPROF, which nothing catches); instead of the
    events the seconds that it took are returned.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.chdir(folder)
        with open("log", "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        status = 70
        signal.setitimer(signal.ITIMER_PROF, seconds)
        with contextlib.suppress(BaseException):
            with counted(kill_at) as count:
                status = cli.main(command.split())
            os.write(write, str(count()).encode())
        os._exit(status)
    os.close(write)
    with open(read) as pipe:
        told = pipe.read()
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime if seconds else int(told or 0)


@contextlib.contextmanager
def counted(kill_at: int | None) -> Iterator[Callable[[], int]]:
    """Count the events inside, and end this process before that of number `kill_at`."""
    count, active = 0, True

    def event() -> None:
        nonlocal count
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        writes = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if active and (writes or name in EVENTS) and arguments[0] != os.devnull:
            event()

    def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        half = path.with_name(".half")  # as safetensors has a file of its own, which it renames
        half.write_bytes(b"half of what is to be forgotten")
        event()
        half.unlink()
        save_file(tensors, path, metadata)

    sys.addaudithook(hook)
    files.save_file = save
    yield lambda: count
    active = False


def shown(folder: Path, case: Case) -> dict[str, str]:
    """What a reader finds under the names of the results."""
    found = [folder / "out" / name for name in case.shown]
    return {path.name: digest(path) for path in found if path.exists()}


def contents(folder: Path) -> dict[str, str]:
    """All that is there, by what must be equal of it."""
    return {str(path.relative_to(folder)): digest(path) for path in folder.rglob("*") if path.name != "log"}


def digest(path: Path) -> str:
    if path.is_dir() or path.suffix in (".html", ".log", ".md"):
        return path.suffix
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        values = map(json.loads, data.splitlines() if path.suffix == ".jsonl" else [data])
        data = json.dumps([without_times(value) for value in values], sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm_up()
    sys.exit(main())
