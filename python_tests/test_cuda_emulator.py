"""The bodies of the CUDA kernels on CPU threads: in blocks of any size, on memory that is not aligned, without races.

That they give the right results is shown by the tests that take a `backend`.
"""

import os
import shutil
from pathlib import Path

import emulator
import pytest
import torch
from emulator import ROOT, SOURCES, compile_cpp, emulated, run
from op_tools import (
    CONFIGS,
    DTYPES,
    Search,
    check_attack_loss,
    check_whole_search,
    draw_feedback,
    draw_logits,
    unaligned,
)
from pairs import pairs
from test_masked_sgd import BLOCK, KEEPS, Lists, check_masked_sgd
from test_sm_taylor import check_sm_taylor

from amun_ext import ops
from amun_ext.ops import Feedback, SlotBatch

pytestmark = pytest.mark.slow


def sizes(*values: tuple[int, ...]) -> list:
    """An axis whose values are several parameters each."""
    return [pytest.param(*each, id="x".join(map(str, each))) for each in values]


@pytest.fixture
def launched():
    """The ops run the CUDA kernels in blocks as on a GPU."""
    with emulated():
        yield


class TestEmulator:
    @pytest.mark.parametrize(("threads", "leave"), [(64, 32), (40, 7), (33, 33)])
    def test_barriers_skip_threads_that_have_returned(self, threads, leave):
        emulator.load()
        assert torch.ops.amun_emulator.block_after_exit(threads, leave) == [leave] * leave

    def test_a_shuffle_needs_the_whole_warp(self):
        emulator.load()
        torch.ops.amun_emulator.shuffle_after_exit(64, 32)
        with pytest.raises(RuntimeError, match=r"a shuffle asks for lane \d+, which is not there"):
            torch.ops.amun_emulator.shuffle_after_exit(64, 48)


class TestBlocks:
    @pytest.mark.parametrize(
        ("dtype", "loss", "threads", "rows"), pairs(DTYPES, ops.LOSSES, sizes((64, 0), (32, 1), (64, 41)))
    )
    def test_attack_loss(self, dtype, loss, threads, rows):
        with emulated(threads):
            check_attack_loss(*draw_logits(rows, 10, dtype=dtype), loss)

    @pytest.mark.parametrize(
        ("dtype", "threads", "length", "rule"),
        pairs(DTYPES, sizes((256, 3 * 32 * 32 + 1), (32, 1000), (96, 31), (256, 3)), ops.RULES),
    )
    def test_search_step(self, dtype, threads, length, rule):
        with emulated(threads):
            check_whole_search(Search.begin(2, 3, (length,), dtype=dtype), rule)

    @pytest.mark.parametrize(
        ("dtype", "keep", "threads", "size"),
        pairs(KEEPS, sizes((32, 31), (256, 2 * BLOCK), (256, BLOCK - 1), (96, BLOCK + 1))),
    )
    def test_masked_sgd(self, dtype, keep, threads, size):
        with emulated(threads):
            lists = Lists.draw([(size,), (3,), (size + 1,)], dtype, keep=keep)
            check_masked_sgd(lists, momentum=0.9, weight_decay=0.1)

    @pytest.mark.parametrize(
        ("dtype", "classes", "threads", "rows"), pairs(DTYPES, [2, 10, 40], sizes((64, 0), (32, 1), (64, 41)))
    )
    def test_sm_taylor_softmax(self, dtype, classes, threads, rows):
        with emulated(threads):
            check_sm_taylor(*draw_logits(rows, classes, dtype=dtype))


@pytest.mark.usefixtures("launched")
class TestLaunches:
    @pytest.mark.parametrize(("dtype", "length", "rule"), pairs(DTYPES, [3 * 32 * 32, 2 * 6144, 6145], ops.RULES))
    def test_rows_that_a_block_keeps_and_longer_ones(self, dtype, length, rule):
        check_whole_search(Search.begin(1, 2, (length,), dtype=dtype), rule)

    @pytest.mark.parametrize("count", [1, 79, 80, 81, 200])
    def test_lists_that_fit_a_launch_and_longer_ones(self, count):
        check_masked_sgd(Lists.draw([(1 + i % 9,) for i in range(count)]), momentum=0.9)


@pytest.mark.usefixtures("launched")
class TestPlaceAndAlignment:
    """Of a row change nothing, to the bit: what is added up by which thread does not depend on them."""

    @pytest.mark.parametrize(("dtype", "loss", "classes"), pairs(DTYPES, ops.LOSSES, [16, 200, 1032]))
    def test_attack_loss(self, dtype, loss, classes):
        logits, labels = draw_logits(9, classes, dtype=dtype)
        result = ops.attack_loss(logits, labels, loss)
        assert all(map(torch.equal, result, ops.attack_loss(unaligned(logits), labels, loss)))
        for column, alone in zip(result, ops.attack_loss(logits[7:].clone(), labels[7:], loss), strict=True):
            assert torch.equal(column[7:], alone)

    @pytest.mark.parametrize(("dtype", "rule"), pairs(DTYPES, ops.RULES))
    def test_search_step(self, dtype, rule):
        search = Search.running(3, (840,), dtype=dtype)
        feedback = draw_feedback(search.batch.x, torch.tensor([False, True, False]))
        moved, alone = search.copy(), search.copy()
        moved.batch = moved.batch._replace(x=unaligned(moved.batch.x))
        moved.table = moved.table._replace(inputs=unaligned(moved.table.inputs))
        for each in (search, moved):
            each.step(feedback, CONFIGS[rule])
        assert torch.equal(search.batch.x, moved.batch.x)
        assert all(map(torch.equal, search.table, moved.table))

        alone.batch = SlotBatch(*(column[2:].clone() for column in alone.batch))
        alone.step(Feedback(*(each[2:].clone() for each in feedback)), CONFIGS[rule])
        assert torch.equal(search.batch.x[2:], alone.batch.x)

    @pytest.mark.parametrize(("dtype", "classes"), pairs(DTYPES, [10, 200, 1000]))
    def test_sm_taylor_softmax(self, dtype, classes):
        logits, labels = draw_logits(9, classes, dtype=dtype)
        signal = check_sm_taylor(logits, labels)
        check_sm_taylor(unaligned(logits), labels)
        assert torch.equal(signal[7:], ops.sm_taylor_softmax(logits[7:].clone(), labels[7:].clone()))

    @pytest.mark.parametrize("moved", ["params", "grads", "momentum_buffers", "masks"])
    @pytest.mark.parametrize(("dtype", "keep"), KEEPS)
    def test_masked_sgd(self, dtype, keep, moved):
        lists = Lists.draw([(301,)], dtype, keep=keep)
        getattr(lists, moved)[:] = map(unaligned, getattr(lists, moved))
        check_masked_sgd(lists, momentum=0.9)


# -------------------------------------------------------------------------------------------------------------- races


def find_races(kernels: Path, folder: Path) -> str:
    """What ThreadSanitizer says of the kernels in this csrc; empty when it says nothing."""
    flags = ["-fsanitize=thread", "-O1", "-g", f"-I{SOURCES}", f"-I{kernels}"]
    command = [compile_cpp(SOURCES / "race_check.cpp", folder / "race_check", *flags)]
    # At the first race: a kernel without its barriers need not come to an end.
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    checked = run(command, env=environment)
    if "unexpected memory mapping" in checked.stderr:  # a libtsan older than the kernel's address randomisation
        checked = run(["setarch", "-R", *command], env=environment)
    assert checked.returncode == 0 or "WARNING: ThreadSanitizer: data race" in checked.stderr, checked.stderr
    assert (checked.returncode == 0) == (not checked.stderr)
    return checked.stderr


def planted(kernel: Path, text: str, folder: Path) -> Path:
    """A copy of csrc in which the kernel reads `text`."""
    csrc = Path(shutil.copytree(ROOT / "csrc", folder / "csrc"))
    (csrc / kernel).write_text(text)
    return csrc


BARRIERS = [
    pytest.param(kernel.relative_to(ROOT / "csrc"), place, id=f"{kernel.name}-{place}")
    for kernel in sorted((ROOT / "csrc/cuda").glob("*.cuh"))
    for place in range(kernel.read_text().count("__syncthreads();"))
]


class TestRaces:
    def test_kernels_have_none(self, tmp_path):
        assert find_races(ROOT / "csrc", tmp_path) == ""

    @pytest.mark.parametrize(("kernel", "place"), BARRIERS)
    def test_every_barrier_is_needed(self, tmp_path, kernel, place):
        """And a race is found where there is one, or the test above says nothing."""
        pieces = (ROOT / "csrc" / kernel).read_text().split("__syncthreads();")
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        assert "data race" in find_races(planted(kernel, "__syncthreads();".join(pieces), tmp_path), tmp_path)

    def test_a_thread_reads_again_what_it_moves_itself(self, tmp_path):
        """Of a long row, which no barrier guards."""
        kernel = Path("cuda/search_step.cuh")
        text = (ROOT / "csrc" / kernel).read_text()
        moved = "store<whole>(x, i, length, next);"
        assert text.count(moved) == 1
        text = text.replace(moved, "store<whole>(x, i ^ 1, length, next);")
        assert "data race" in find_races(planted(kernel, text, tmp_path), tmp_path)

    def test_no_two_threads_update_the_same_parameter(self, tmp_path):
        kernel = Path("cuda/masked_sgd.cuh")
        text = (ROOT / "csrc" / kernel).read_text()
        for own in ("begin + threadIdx.x * width", "packed + threadIdx.x"):
            assert text.count(own) == 1
            folder = tmp_path / own.split()[0]
            folder.mkdir()
            spoilt = text.replace(own, own.split()[0])
            assert "data race" in find_races(planted(kernel, spoilt, folder), folder)

    @pytest.mark.parametrize("op", ["attack_loss", "sm_taylor_softmax"])
    def test_one_lane_writes_the_answer_of_a_row(self, tmp_path, op):
        kernel = Path(f"cuda/{op}.cuh")
        text = (ROOT / "csrc" / kernel).read_text()
        one_lane = "if (exists && lane == 0)"
        assert text.count(one_lane) == 1
        assert "data race" in find_races(planted(kernel, text.replace(one_lane, "if (exists)"), tmp_path), tmp_path)
