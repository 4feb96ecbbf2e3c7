"""The commands in a process group: the ranks share the work, and write what one process writes, once."""

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kill_tools import wait_for
from rank_tools import run_ranks
from safetensors.torch import load_file

from amun_ext import AdversarialSet, InputError, cli
from amun_ext.cli import ranks

ROOT = Path(__file__).parents[1]
TRAIN = "train --data digits --model small-cnn --width 4 --lr 0.1 --batch-size 64 --epochs"
FREE = {"seconds", "seconds_by_digest", "date", "request", "model_digest", "new_model_digest", "FT SE"}


def command(told: str, folder: Path, out: str) -> int:
    return cli.main([*told.format(folder=folder).split(), "--quiet", "--out", str(folder / out)])


def run_all(folder: Path) -> list[int]:
    """Of one network, so that what follows from it can be equal to the last digit."""
    model = "--model {folder}/original.safetensors --data digits"
    some = f"{model} --ids 3,17,40-60"
    return [
        command(f"references {model} --num-models 4 --epochs 1", folder, "references"),
        command(f"prepare {model} --folds 2 --epochs 1", folder, "targets.safetensors"),
        command(f"search {model} --count 20 --methods ddn --no-curves", folder, "searched"),
        command(f"audit {some} --references {{folder}}/references --random-forget-set", folder, "audited"),
        command(f"forget {some} --epochs 1", folder, "forgotten"),
        command(f"forget {some} --epochs 1", folder, "forgotten"),
        command(f"forget {some} --epochs 2", folder, "forgotten"),
    ]


def content(path: Path) -> object:
    """Of a JSON file, without what is of this run."""

    def kept(value: object) -> object:
        if isinstance(value, dict):
            return {name: kept(entry) for name, entry in value.items() if name not in FREE}
        return [*map(kept, value)] if isinstance(value, list) else value

    return kept(json.loads(path.read_text()))


@pytest.mark.slow
def test_every_command_gives_what_it_gives_in_one_process(tmp_path: Path, digits_checkpoint: Path, capfd) -> None:
    shared, one = tmp_path / "shared", tmp_path / "one"
    for folder in (shared, one):
        folder.mkdir()
        (folder / "original.safetensors").write_bytes(digits_checkpoint.read_bytes())
    assert run_ranks(run_all, 2, shared) == [[0, 0, 0, 0, 0, 0, 2]] * 2
    said = capfd.readouterr()
    assert run_all(one) == [0, 0, 0, 0, 0, 0, 2]
    assert "already done" in said.out
    same = ["targets.safetensors", *(f"references/reference-000{number}.safetensors" for number in range(4))]
    for name in same:
        assert (shared / name).read_bytes() == (one / name).read_bytes(), name
    assert content(shared / "audited/audit.json") == content(one / "audited/audit.json")
    ours, theirs = (AdversarialSet.load(folder / "searched/ddn.safetensors") for folder in (shared, one))
    assert torch.equal(ours.found, theirs.found)
    torch.testing.assert_close(ours.distance, theirs.distance, rtol=1e-4, atol=1e-6)
    ours, theirs = (load_file(folder / "forgotten/model.safetensors") for folder in (shared, one))
    assert ours.keys() == theirs.keys()
    left = {path.relative_to(shared) for path in shared.rglob("*")} - {path.relative_to(one) for path in one.rglob("*")}
    assert {str(path) for path in left} <= {"store"}


def torchrun(told: str, options: str = "", program: str = "-m amun_ext", **environment: str) -> "subprocess.Popen[str]":
    launch = f"-m torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0 {options}"
    given = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python_tests'}", "GLOO_SOCKET_IFNAME": "lo"} | environment
    return subprocess.Popen(
        [sys.executable, *launch.split(), *program.split(), *told.split()],
        env=os.environ | given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[list[str], set[str]]:
    """The lines that amun printed, and the exit statuses of its ranks."""
    out, errors = process.communicate()
    lines = [line for line in (out + errors).splitlines() if line.startswith(("amun", "accuracy", "already", "train"))]
    return [line for line in lines if not line.endswith("FAILED")], {*re.findall(r"exitcode +: (-?\d+)", errors)}


@pytest.mark.slow
def test_one_rank_speaks_and_a_refusal_ends_all_with_its_status(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    lines, statuses = ended(torchrun(f"{TRAIN} 1 --out {out}"))
    assert [line.split()[0] for line in sorted(lines)] == ["accuracy", "train:"]
    assert not statuses
    lines, statuses = ended(torchrun(f"{TRAIN} 2 --out {out}"))
    assert len(lines) == 1
    assert lines[0].startswith("amun: error: --out must be")
    assert statuses == {"2"}


@pytest.mark.slow
def test_a_stopped_command_and_one_with_a_rank_that_hangs_resume(tmp_path: Path) -> None:
    out, resumed = tmp_path / "model.safetensors", tmp_path / "unfinished-train-model.safetensors/training.safetensors"
    train = f"{TRAIN} 100000 --quiet --out {out}"
    process = torchrun(train)
    wait_for(resumed.exists)
    process.send_signal(signal.SIGINT)
    lines, _ = ended(process)
    assert len(lines) == 1
    assert lines[0].endswith("run the same command again to resume")
    before = load_file(resumed)["order"]
    process = torchrun(train, AMUN_TIMEOUT="30")  # more than a busy machine may keep a rank from answering
    wait_for(lambda: not torch.equal(load_file(resumed)["order"], before))  # it has gone on
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGSTOP)
    lines, statuses = ended(process)
    assert len(lines) == 1
    assert "another rank has ended or does not answer" in lines[0]
    assert statuses >= {"1"}
    load_file(resumed)
    assert not out.exists()


KILLED_ONCE = """
import os, pathlib, signal, sys
from amun_ext import cli
from amun_ext.auditing import references

attempt, folder = os.environ["TORCHELASTIC_RESTART_COUNT"], pathlib.Path(__file__).parent
train = references._train_reference
for path in (folder / "shared").glob("reference-*.safetensors"):
    (folder / f"there-{attempt}-{path.name[-13]}").touch()

def train_or_die(*arguments):
    number = arguments[-1] - references.SEED
    (folder / f"trained-{attempt}-{number}").touch()
    if (attempt, number) == ("0", 2):  # which the rank takes after another one is done
        os.kill(os.getpid(), signal.SIGKILL)
    return train(*arguments)

references._train_reference = train_or_die
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_after_a_restart_only_models_in_flight_are_trained_again(tmp_path: Path, digits_checkpoint: Path) -> None:
    script = tmp_path / "killed_once.py"
    script.write_text(KILLED_ONCE)
    told = f"references --model {digits_checkpoint} --data digits --num-models 4 --epochs 1 --quiet --out"
    process = torchrun(f"{told} {tmp_path / 'shared'}", "--max-restarts 1", str(script), **{ranks.NEW_STORE: "1"})
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    done, again = ({path.name[-1] for path in tmp_path.glob(f"{what}-1-*")} for what in ("there", "trained"))
    assert done
    assert "2" in again
    assert not done & again
    assert done | again == set("0123")
    assert cli.main([*told.split(), str(tmp_path / "one")]) == 0
    for number in range(4):
        name = f"reference-000{number}.safetensors"
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch) -> None:
    """As behind a network that is cut."""
    began, ended, threads = threading.Event(), threading.Event(), []

    def wait(*_: object) -> None:
        threads.append(threading.current_thread())
        began.set()
        ended.wait()
        raise RuntimeError

    monkeypatch.setattr(ranks, "store", lambda: SimpleNamespace(compare_set=wait))
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "PATIENCE", datetime.timedelta())
    error = RuntimeError("timed out")
    assert ranks.first_failure(error) == (error, True)
    began.wait()
    ended.set()
    threads[0].join()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"AMUN_TIMEOUT": "0"}, "AMUN_TIMEOUT must be"),
        ({"TORCHELASTIC_MAX_RESTARTS": "3"}, f"{ranks.NEW_STORE} must be 1"),
    ],
)
def test_a_wrong_environment_is_refused(given: dict[str, str], message: str, monkeypatch) -> None:
    monkeypatch.delenv(ranks.NEW_STORE, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        ranks.join()
