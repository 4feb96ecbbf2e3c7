"""Bad inputs at the command line: each is to be refused in one line or handled, soon and in little memory.

    python benchmarks/bad_inputs.py [--count 1000] [--seed 0] [--processes 20] [--only KIND:NUMBER]

Each input is given to the command in a process forked from this one, with a limit of memory and of time, and some to
`python -m amun_ext` as well. What ends otherwise than in one line or in a result is printed with what it said;
`--only` repeats a single one. Results go to results/bad_inputs.json.
"""

import argparse
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import common
import hostile
import matplotlib.pyplot  # noqa: F401  in every child it would take a second
import torch
from tqdm import tqdm

from amun_ext import cli

MEMORY, SECONDS = 2 * 2**30, 60  # beyond what the process has; of its own time
REFUSED, HANDLED, TRACEBACK, HANG, KILLED = "refused", "handled", "traceback", "hang", "killed"


@dataclass(frozen=True)
class Ended:
    how: str
    said: str
    peak: int  # bytes of resident memory
    seconds: float


def judged(status: int, said: str) -> str:
    """How a command ended: by its status, and by what it said of it."""
    if os.WIFSIGNALED(status):
        return HANG if os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU) else KILLED
    lines = [line for line in said.splitlines() if line.startswith("amun") and ": warning: " not in line]
    last = lines[-1] if lines else ""
    code = os.waitstatus_to_exitcode(status)
    if "Traceback" in said or "--debug shows where" in said:
        return TRACEBACK
    if code in (0, 3, 4, 5, 7, 10, 11, 12):
        return HANDLED
    one = sum("error: " in line or "failed: " in line for line in lines) == 1
    kind = "error: " if code == 2 else "failed: "
    clean = all(each.isprintable() or each in "\r\n" for each in said)
    return REFUSED if code in (1, 2) and one and clean and kind in last else TRACEBACK


def in_a_fork(arguments: list[str], folder: Path) -> Ended:
    """`main` in a child of this process, which has imported all there is."""
    log, start = folder / "log", time.perf_counter()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.chdir(folder)
            limited(resource.RLIMIT_AS, MEMORY + pages())
            signal.alarm(10 * SECONDS)  # of a wait that takes no time of the processor
            limited(resource.RLIMIT_CPU, SECONDS)
            output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(output, 1), os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(each, "w", 1, errors="backslashreplace") for each in (1, 2))
            try:
                code = cli.main(arguments)
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            except BaseException as error:
                print(f"Traceback: {error!r}", file=sys.stderr)
                code = 1
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        os._exit(99)
    _, status, used = os.wait4(child, 0)
    said = log.read_text(errors="surrogateescape") if log.exists() else ""
    return Ended(judged(status, said), said, used.ru_maxrss * 1024, time.perf_counter() - start)


def in_a_process(arguments: list[str], folder: Path) -> Ended:
    """The command itself."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    limits = ["prlimit", f"--as={8 * 2**30}", f"--cpu={SECONDS}"]
    command = [*limits, sys.executable, "-m", "amun_ext", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    try:
        made = subprocess.run(
            command, capture_output=True, cwd=folder, env=environment, timeout=15 * SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Ended(HANG, "", 0, time.perf_counter() - start)
    said = (made.stdout + made.stderr).decode(errors="surrogateescape")
    status = made.returncode << 8 if made.returncode >= 0 else -made.returncode
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Ended(judged(status, said), said, max(peak, before) * 1024, time.perf_counter() - start)


def limited(what: int, value: int) -> None:
    resource.setrlimit(what, (value, value))


def pages() -> int:
    """The address space that this process has taken, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def tried(kind: str, number: int, seed: int, *, process: bool = False, told: bool = False) -> tuple[Ended, list[str]]:
    with tempfile.TemporaryDirectory(prefix="amun-bad-") as made:
        folder = Path(made)
        with contextlib.chdir(folder):
            arguments = hostile.KINDS[kind](random.Random(f"{seed} {kind} {number}"), folder)
        if told:
            print(arguments)
        ended = (in_a_process if process else in_a_fork)(arguments, folder)
        return ended, [each.replace(made, "")[:100] for each in arguments]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--processes", type=int, default=20, help="of these, also as commands (default: %(default)s)")
    parser.add_argument("--only", help="KIND:NUMBER, such as ids:17")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "bad_inputs.json", help="(default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork has none but the one that it is made by
    if options.only:
        kind, _, number = options.only.partition(":")
        ended, _ = tried(kind, int(number), options.seed, told=True)
        print(f"{ended.how} in {ended.seconds:.1f} s, {ended.peak / 2**20:.0f} MiB\n{ended.said}")
        return 0
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in (*hostile.KINDS, "as commands")}
    peak, seconds, wrong, before = 0, 0.0, [], resident()
    kinds = [*hostile.KINDS]
    for index in tqdm(range(options.count + options.processes), unit="input", disable=None):
        process = index >= options.count
        kind, number = kinds[index % len(kinds)], index // len(kinds)
        ended, arguments = tried(kind, number, options.seed, process=process)
        counts["as commands" if process else kind][ended.how] += 1
        if not process:
            peak, seconds = max(peak, ended.peak), max(seconds, ended.seconds)
        if ended.how not in (REFUSED, HANDLED):
            wrong.append({"input": f"{kind}:{number}", "ended": ended.how, "arguments": arguments})
            print(f"{kind}:{number} ended in a {ended.how}: {arguments}\n{ended.said[-1500:]}\n", flush=True)
    total: Counter[str] = sum((each for name, each in counts.items() if name != "as commands"), Counter())
    result = {
        "machine": common.machine(),
        "seed": options.seed,
        "inputs": options.count,
        "total": {how: total[how] for how in (REFUSED, HANDLED, TRACEBACK, HANG, KILLED)},
        "kinds": {kind: dict(each) for kind, each in counts.items()},
        "peak MiB": round(peak / 2**20),
        "MiB before": round(before / 2**20),
        "longest seconds": round(seconds, 1),
        "wrong": wrong,
    }
    common.write_json(options.out, result)
    for kind, each in counts.items():
        print(f"{kind:12} {', '.join(f'{number} {how}' for how, number in each.most_common())}")
    print(f"{'all':12} {result['total']}; at most {result['peak MiB']} MiB, {result['longest seconds']} s an input")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
