"""find_min_adversarial in a process group: each rank searches a block of the samples, all have all results."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rank_tools import run_ranks
from search_tools import CHUNK, Pairs, problem, rows_done
from torch import Tensor

from amun_ext import AdversarialSet, InputError, distributed, find_min_adversarial
from amun_ext.search import find as search_module

pytestmark = pytest.mark.filterwarnings("ignore:.*their gradient is zero")
COUNTS = (23, 2)  # uneven blocks; with three ranks, one without samples


def task(count: int) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """In float64, where rounding is too small to lead a search elsewhere."""
    model, images, _ = problem()
    model, images = model.double(), images.double()
    return model, images[:count], model(images[:count]).argmax(1)


def searched(count: int, **options: object) -> AdversarialSet:
    return find_min_adversarial(*task(count), **{"method": "ddn", "batch_size": 8, "refine": 2} | options)


def saved(found: AdversarialSet, path: Path) -> None:
    found.save(path.with_name(f"{path.name}-{distributed.rank()}"))


def raised(**options: object) -> str:
    try:
        find_min_adversarial(**options)
    except (InputError, distributed.RankError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def search_in_many_ways(folder: Path) -> dict[str, object]:
    for count in COUNTS:
        for method in ("ddn", "pgd"):
            saved(searched(count, method=method), folder / f"{method}-{count}")
        saved(searched(count, out=folder / f"file-{count}"), folder / f"ddn-{count}-file")
    again = searched(COUNTS[0], out=folder / f"file-{COUNTS[0]}")
    saved(again, folder / "again")
    model, images, labels = task(72)
    other = raised(model=model, inputs=images, labels=labels, min_margin=0.1 * distributed.rank())
    bad = Pairs(*zip(images, labels.tolist(), strict=True))
    bad.items = (*bad.items[:-1], (images[-1] + 2, 0))  # of the last rank, beyond what is looked at before
    return {"other": other, "bad": raised(model=model, inputs=bad, method="ddn", batch_size=16)}


def check_equal(found: AdversarialSet, expected: AdversarialSet) -> None:
    for name in ("found", "labels", "true_labels", "source_index"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for name in ("images", "distance"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ranks", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_all_ranks_have_the_results_of_one_process(ranks: int, tmp_path: Path) -> None:
    outcomes = run_ranks(search_in_many_ways, ranks, tmp_path)
    assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
    for name, count, options in [
        ("ddn-23", 23, {}),
        ("ddn-2", 2, {}),
        ("pgd-23", 23, {"method": "pgd"}),
        ("pgd-2", 2, {"method": "pgd"}),
        ("ddn-23-file", 23, {}),
        ("ddn-2-file", 2, {}),
        ("again", 23, {}),
    ]:
        expected = searched(count, **options)
        for number in range(ranks):
            check_equal(AdversarialSet.load(tmp_path / f"{name}-{number}"), expected)
    assert not [path for path in tmp_path.iterdir() if ".rank-" in path.name or path.name.endswith(".partial")]
    for number, outcome in enumerate(outcomes):
        assert "InputError: min_margin must be the same on every rank, got 0.0 on rank 0" in outcome["other"]
        kind = "InputError: inputs[71]" if number == ranks - 1 else f"RankError: rank {ranks - 1} failed: InputError"
        assert outcome["bad"].startswith(kind)


def killed_in_the_second_chunk(folder: Path) -> AdversarialSet:
    """The last rank is, while the first waits for it."""
    search_module.CHUNK_BATCHES = 1
    write, chunks = search_module._write, []

    def write_or_die(*arguments: object) -> None:
        chunks.append(1)
        if distributed.rank() == 1 and len(chunks) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)

    search_module._write = write_or_die
    return searched(60, out=folder / "set", batch_size=CHUNK)


def resumed(folder: Path) -> str:
    model, images, labels = task(60)
    saved(find_min_adversarial(model, images, labels, **resume_options(folder)), folder / "whole")
    return "done"


def resume_options(folder: Path) -> dict[str, object]:
    return {"method": "ddn", "batch_size": CHUNK, "refine": 2, "out": folder / "set"}


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_search_resumes(tmp_path: Path) -> None:
    first, second = run_ranks(killed_in_the_second_chunk, 2, tmp_path)
    assert "RankError: another rank has ended or does not answer" in first
    assert second == -signal.SIGKILL
    assert rows_done(tmp_path / "set.rank-1-of-2.partial") == CHUNK
    with pytest.raises(InputError, match="out must be resumed by as many ranks as before"):
        find_min_adversarial(*task(60), **resume_options(tmp_path))
    assert run_ranks(resumed, 2, tmp_path) == ["done"] * 2
    for number in range(2):
        check_equal(AdversarialSet.load(tmp_path / f"whole-{number}"), searched(60, batch_size=CHUNK))
    assert not [path for path in tmp_path.iterdir() if ".rank-" in path.name]


@pytest.mark.parametrize(("message", "lost"), [("Connection closed by peer", True), ("No backend for cuda", False)])
def test_only_errors_of_the_connection_are_lost_ranks(message: str, lost: bool) -> None:
    with pytest.raises(RuntimeError, match=message) as raised, distributed._lost_ranks():
        raise RuntimeError(message)
    assert isinstance(raised.value, distributed.RankError) == lost


def test_without_a_group_there_is_one_rank() -> None:
    assert not dist.is_initialized()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.blocks(5) == [range(5)]
    assert distributed.exchange("a value") == ["a value"]
