"""What every test gets: the devices there are, one thread, and random inputs that are the same in each run.

AMUN_TEST_SEED=random explores: it draws another seed, and says which. AMUN_TEST_SEED=NUMBER takes that one.
"""

import contextlib
import copy
import fcntl
import hashlib
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

# One thread in every process, those that tests start too: there is a worker for each core, and in models this small
# threads only wait for each other. Before torch, which reads it when it is loaded.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from emulator import emulated
from hypothesis import settings
from search_tools import Task, trained_net
from training_tools import SMALL_TRAINING

from amun_ext import cli

ASKED = os.environ.get("AMUN_TEST_SEED") or "0"
SEED = int.from_bytes(os.urandom(4)) if ASKED == "random" else int(ASKED)
os.environ["AMUN_TEST_SEED"] = str(SEED)  # for the processes of pytest-xdist
REQUIRE_CUDA = os.environ.get("AMUN_REQUIRE_CUDA") == "1"
collect_ignore = [] if torch.cuda.is_available() or REQUIRE_CUDA else ["test_cuda_device.py"]
AGAIN = f"AMUN_TEST_SEED={SEED} gives these random inputs again"


# Without a database of former failures, by which a run would depend on the runs before it; time is the machine's.
settings.register_profile("same in each run", database=None, deadline=None)
settings.load_profile("same in each run")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    torch.set_num_threads(1)
    if config.getoption("hypothesis_seed", None) is None:  # before hypothesis' own plug-in looks at it
        config.option.hypothesis_seed = str(SEED)


def pytest_report_header():
    return AGAIN


def pytest_terminal_summary(terminalreporter):
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(AGAIN)


def pytest_collectstart():
    """What a module draws when it is imported is the same alone and among others, whatever the seed is."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_random_inputs(request):
    """A test draws the same numbers alone and among others, and leaves the generators as it found them."""
    seed = 0 if request.node.get_closest_marker("same_inputs") else SEED
    digest = hashlib.sha256(f"{seed} {request.node.nodeid}".encode()).digest()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        seed = int.from_bytes(digest[:4])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() or REQUIRE_CUDA else ["cpu"]


@pytest.fixture(scope="session", params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.fail("AMUN_REQUIRE_CUDA=1, but torch finds no CUDA device")
    return request.param


@pytest.fixture(params=[*DEVICES, pytest.param("emulator", marks=pytest.mark.slow)])
def backend(request):
    """A device for the ops; with the emulator it is the CPU, where they run the CUDA kernels."""
    with emulated() if request.param == "emulator" else contextlib.nullcontext():
        yield "cpu" if request.param == "emulator" else request.param


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """once(name, make): a folder that `make` fills in one process of the run, and that all of them read."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / f"once-{name}", shared / f"once-{name}.done"
        with (shared / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture
def refused(capsys) -> Callable[[list[str], str], None]:
    """refused(command, message): amun ends with status 2 and one line, in which the message is."""

    def check(command: list[str], message: str) -> None:
        capsys.readouterr()
        assert cli.main(command) == 2
        told = capsys.readouterr().err
        assert told.startswith("amun: error: ")
        assert told.count("\n") == 1
        assert re.search(message, told), told

    return check


@pytest.fixture(scope="session")
def digits_checkpoint(once) -> Path:
    """A small network for the digits, by the command that users have for it."""
    told = "train --data digits --model small-cnn --width 8 --epochs 3 --lr 0.1 --schedule cosine --batch-size 64"
    name = "model.safetensors"
    return once("digits", lambda folder: cli.main([*told.split(), "--out", str(folder / name)])) / name


@pytest.fixture(scope="session")
def original(once) -> Path:
    """A checkpoint after one epoch, where what it has learned does not matter."""
    name = "model.safetensors"
    return once("original", lambda folder: cli.main([*SMALL_TRAINING.split(), "--out", str(folder / name)])) / name


@pytest.fixture(scope="session")
def trained() -> Task:
    """Of which shares and medians are asserted: the same whatever the seed is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images, labels = torch.rand(100, 1, 6, 6), torch.randint(0, 4, (100,))
        return trained_net(images, labels), images, labels


@pytest.fixture
def task(trained: Task) -> Task:
    """A net that is right about 100 images, and these."""
    net, images, labels = trained
    right = net(images).argmax(1) == labels
    assert right.sum() > 80
    return copy.deepcopy(net), images[right], labels[right]


@pytest.fixture
def few(task: Task) -> Task:
    model, images, labels = task
    return model, images[:30], labels[:30]
