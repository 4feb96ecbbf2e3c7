"""The bodies of the CUDA kernels on CPU threads, alone and under ThreadSanitizer; and that the CUDA build loads."""

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

import pybind11
import pytest
import torch
from pairs import pairs
from test_masked_sgd import BLOCK, KEEPS, RULES, SHAPES, Lists, check_masked_sgd
from test_ops import DTYPES, SCHEDULES, Feedback, Search, check_attack_loss, check_whole_search, draw_logits
from test_sm_taylor import check_sm_taylor
from torch import Tensor
from torch.utils.cpp_extension import include_paths

from amun_ext import extension, ops
from amun_ext.ops import AttackLoss, Book, Pool, Schedule, accumulate_dtype

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))
import kernels as compiler  # noqa: E402

EMULATOR = Path(__file__).resolve().parent / "cuda_emulator"
COMPILER = [os.environ.get("CXX", "g++"), "-std=c++20", "-pthread", "-Wall", "-Wno-unknown-pragmas"]


def run(command: list[str | Path], **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **kwargs)


def compile_cpp(source: Path, output: Path, *flags: str) -> Path:
    built = run([*COMPILER, source, "-o", output, *flags])
    assert built.returncode == 0, built.stderr
    return output


# ---------------------------------------------------------------------------------------------------------- emulation


def build_emulator() -> Path:
    """The emulator's module, kept under build/ for as long as nothing that it is made of changes."""
    folders = [EMULATOR, ROOT / "csrc", pybind11.get_include(), *include_paths()]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    flags = ["-O2", "-fPIC", "-shared", "-fvisibility=hidden"]
    flags += [f"-I{folder}" for folder in (*folders, sysconfig.get_paths()["include"])]
    made_of = hashlib.sha256(f"{COMPILER} {flags} {torch.__version__} {pybind11.__version__}".encode())
    for file in sorted([*EMULATOR.iterdir(), *(ROOT / "csrc").rglob("*.*h")]):
        made_of.update(file.read_bytes())
    module = ROOT / "build/cuda_emulator" / made_of.hexdigest()[:16] / f"amun_cuda_emulator{suffix}"
    module.parent.mkdir(parents=True, exist_ok=True)
    with (module.parent / "lock").open("w") as lock:  # by one process of a run, while the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not module.exists():
            with tempfile.TemporaryDirectory(dir=module.parent) as folder:  # whole or not at all
                compile_cpp(EMULATOR / "emulator.cpp", Path(folder) / "module.so", *flags).replace(module)
    return module


def raw(tensor: Tensor):
    """The tensor's memory as a NumPy array; a half type as its bits, since NumPy has no bfloat16."""
    return (tensor.view(torch.uint16) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shapes(*sizes: tuple[int, ...]) -> list:
    """An axis whose values are several parameters each."""
    return [pytest.param(*each, id="x".join(map(str, each))) for each in sizes]


def unaligned(tensor: Tensor) -> Tensor:
    """The same, but beginning where no 16 bytes do."""
    return torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)


class EmulatedOps:
    """The ops with the signatures of amun_ext.ops, in blocks of `threads`; 0: as they are launched."""

    def __init__(self, module, threads: int = 64) -> None:
        self.module, self.threads = module, threads

    def attack_loss(self, logits: Tensor, labels: Tensor, loss: str, gap: float = 0.0) -> AttackLoss:
        rows, real = len(logits), accumulate_dtype(logits.dtype)
        result = AttackLoss(
            torch.empty(rows, dtype=torch.bool),
            torch.empty(rows, dtype=torch.int64),
            torch.empty(rows, dtype=real),
            torch.empty_like(logits),
        )
        settings = (raw(logits), raw(labels), loss == "margin", gap)
        self.module.attack_loss(name(logits.dtype), self.threads, *settings, *map(raw, result))
        return result

    def search_step_(
        self,
        pool: Pool,
        book: Book,
        queue: Tensor,
        cursor: Tensor,
        grad: Tensor,
        adversarial: Tensor,
        predicted: Tensor,
        margin: Tensor,
        schedule: Schedule,
        bounds: tuple[float, float],
    ) -> None:
        tensors = (*pool, grad, adversarial, predicted, margin, *book, queue, cursor)
        rule = ops.RULES.index(schedule.rule)
        self.module.search_step_(name(pool.x.dtype), self.threads, *map(raw, tensors), rule, *schedule[1:], *bounds)

    def masked_sgd_(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        momentum_buffers: list[Tensor],
        masks: list[Tensor],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        first: bool = False,
        gradient_only: bool = False,
    ) -> None:
        lists = [
            [raw(each) for each in tensors if each.numel()] for tensors in (params, grads, momentum_buffers, masks)
        ]
        wide = any(buffer.dtype != param.dtype for param, buffer in zip(params, momentum_buffers, strict=False))
        fresh = 1.0 if first or not momentum else 1 - dampening
        rule = (lr, momentum, fresh, weight_decay, nesterov, maximize, first, gradient_only)
        self.module.masked_sgd_(name(params[0].dtype), wide, self.threads, *lists, *rule)

    def sm_taylor_softmax(
        self,
        logits: Tensor,
        labels: Tensor,
        order: int = 4,
        margin: float = 0.6,
        temperature: float = 2.0,
        floor: float | None = None,
    ) -> Tensor:
        signal = torch.empty(logits.shape[:-1], dtype=accumulate_dtype(logits.dtype))
        rule = (order, margin, temperature, -math.inf if floor is None else floor)
        self.module.sm_taylor_softmax(name(logits.dtype), self.threads, raw(logits), raw(labels), *rule, raw(signal))
        return signal


@pytest.fixture(scope="session")
def emulator():
    path = str(build_emulator())
    loader = importlib.machinery.ExtensionFileLoader("amun_cuda_emulator", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader, origin=path))
    loader.exec_module(module)
    return module


class TestEmulator:
    @pytest.mark.parametrize(("threads", "leave"), [(64, 32), (40, 7), (33, 33)])
    def test_threads_that_have_returned_are_not_waited_for(self, emulator, threads, leave):
        assert (emulator.block_after_exit(threads, leave) == leave).all()

    def test_a_shuffle_needs_the_whole_warp(self, emulator):
        emulator.shuffle_after_exit(64, 32)
        with pytest.raises(RuntimeError, match=r"a shuffle asks for lane \d+, which is not there"):
            emulator.shuffle_after_exit(64, 48)


class TestAttackLossKernel:
    @pytest.mark.parametrize(
        ("dtype", "loss", "classes"), pairs(DTYPES, ops.LOSSES, [2, 3, 10, 31, 32, 33, 63, 64, 65, 100])
    )
    def test_classes_around_a_warp(self, emulator, dtype, loss, classes):
        check_attack_loss(EmulatedOps(emulator).attack_loss, *draw_logits(3, classes, dtype=dtype), loss)

    @pytest.mark.parametrize(
        ("dtype", "loss", "threads", "rows"),
        pairs(DTYPES, ops.LOSSES, shapes((64, 0), (32, 1), (128, 4), (128, 5), (64, 41))),
    )
    def test_rows_and_blocks(self, emulator, dtype, loss, threads, rows):
        check_attack_loss(EmulatedOps(emulator, threads).attack_loss, *draw_logits(rows, 10, dtype=dtype), loss)

    @pytest.mark.parametrize(("dtype", "loss", "classes"), pairs(DTYPES, ops.LOSSES, [1000, 1024, 1025, 1032, 3000]))
    def test_rows_that_a_warp_keeps_and_longer_ones(self, emulator, dtype, loss, classes):
        check_attack_loss(EmulatedOps(emulator, 0).attack_loss, *draw_logits(5, classes, dtype=dtype), loss)

    @pytest.mark.parametrize(("dtype", "loss", "classes"), pairs(DTYPES, ops.LOSSES, [16, 200, 1032]))
    def test_place_and_alignment_of_a_row_change_nothing(self, emulator, dtype, loss, classes):
        op, (logits, labels) = EmulatedOps(emulator).attack_loss, draw_logits(9, classes, dtype=dtype)
        result = op(logits, labels, loss)
        assert all(map(torch.equal, result, op(unaligned(logits), labels, loss)))
        for column, alone in zip(result, op(logits[7:].clone(), labels[7:].clone(), loss), strict=True):
            assert torch.equal(column[7:], alone)

    @pytest.mark.parametrize(("dtype", "loss", "gap"), pairs(DTYPES, ops.LOSSES, [0.0, 1.0]))
    def test_ties(self, emulator, dtype, loss, gap):
        logits = torch.randint(3, (24, 70)).to(dtype)
        check_attack_loss(EmulatedOps(emulator).attack_loss, logits, torch.randint(70, (24,)), loss, gap)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("loss", ops.LOSSES)
    def test_logits_that_are_not_finite(self, emulator, dtype, loss):
        logits, labels = draw_logits(40, 40, dtype=dtype)
        drawn = torch.rand(logits.shape)
        logits[drawn < 0.02], logits[drawn > 0.98] = torch.inf, -torch.inf
        logits[:8, 39] = torch.nan
        result = check_attack_loss(EmulatedOps(emulator).attack_loss, logits, labels, loss)
        assert (result.predicted[:8] == -1).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("loss", ops.LOSSES)
    def test_labels_out_of_range(self, emulator, dtype, loss):
        logits, _ = draw_logits(2, 33, dtype=dtype)
        result = EmulatedOps(emulator).attack_loss(logits, torch.tensor([33, -1]), loss)
        assert (result.predicted == -1).all()
        assert not result.adversarial.any()
        assert result.margin.isnan().all()
        assert (result.grad_logits == 0).all()


class TestSearchStepKernel:
    @pytest.mark.parametrize(("dtype", "shape", "rule"), pairs(DTYPES, [(1,), (33,), (3, 7, 7)], ops.RULES))
    def test_whole_search_matches_the_reference(self, emulator, dtype, shape, rule):
        check_whole_search(EmulatedOps(emulator).search_step_, Search.begin(5, 12, shape, dtype=dtype), rule)

    @pytest.mark.parametrize(
        ("dtype", "threads", "length", "rule"),
        pairs(DTYPES, shapes((256, 3 * 32 * 32 + 1), (32, 1000), (96, 31), (256, 3)), ops.RULES),
    )
    def test_blocks_of_any_size(self, emulator, dtype, threads, length, rule):
        step = EmulatedOps(emulator, threads).search_step_
        check_whole_search(step, Search.begin(2, 3, (length,), dtype=dtype), rule)

    @pytest.mark.parametrize(("dtype", "length", "rule"), pairs(DTYPES, [3 * 32 * 32, 2 * 6144, 6145], ops.RULES))
    def test_rows_that_a_block_keeps_and_longer_ones(self, emulator, dtype, length, rule):
        check_whole_search(EmulatedOps(emulator, 0).search_step_, Search.begin(1, 2, (length,), dtype=dtype), rule)

    @pytest.mark.parametrize("rule", ops.RULES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_place_and_alignment_of_a_row_change_nothing(self, emulator, dtype, rule):
        """To the bit: what is added up by which thread does not depend on them."""
        step, search = EmulatedOps(emulator).search_step_, Search.running(3, (840,), dtype=dtype)
        feedback = Feedback.random(search.pool.x, torch.tensor([False, True, False]))
        moved, alone = search.copy(), search.copy()
        moved.pool = moved.pool._replace(x=unaligned(moved.pool.x))
        moved.book = moved.book._replace(inputs=unaligned(moved.book.inputs))
        for each in (search, moved):
            each.step(step, feedback, SCHEDULES[rule])
        assert torch.equal(search.pool.x, moved.pool.x)
        assert all(map(torch.equal, search.book, moved.book))

        alone.pool = Pool(*(column[2:].clone() for column in alone.pool))
        alone.step(step, Feedback(**{name: each[2:].clone() for name, each in vars(feedback).items()}), SCHEDULES[rule])
        assert torch.equal(search.pool.x[2:], alone.pool.x)

    @pytest.mark.parametrize("rule", ops.RULES)
    @pytest.mark.parametrize(("slots", "queue"), [(3, []), (0, [0]), (6, [4, 1]), (1, [2, 0, 1])], ids=str)
    def test_pools_and_queues(self, emulator, slots, queue, rule):
        search = Search.begin(slots, 5, (7,), queue=queue)
        if slots:
            check_whole_search(EmulatedOps(emulator).search_step_, search, rule)
        else:
            search.step(EmulatedOps(emulator).search_step_, Feedback.random(search.pool.x), SCHEDULES[rule])
            assert search.cursor == 0


class TestMaskedSgdKernel:
    @pytest.mark.parametrize(("dtype", "keep"), KEEPS)
    @pytest.mark.parametrize("rule", RULES)
    def test_matches_the_reference(self, emulator, dtype, keep, rule):
        for lists in (Lists.draw(SHAPES, dtype, keep=keep), Lists.draw([(5,), (BLOCK + 3,)], dtype, keep=keep)):
            check_masked_sgd(EmulatedOps(emulator).masked_sgd_, lists, **rule)
            lists.masks = []
            check_masked_sgd(EmulatedOps(emulator).masked_sgd_, lists, **rule)

    @pytest.mark.parametrize(("threads", "size"), [(32, 31), (256, 2 * BLOCK), (256, BLOCK - 1), (96, BLOCK + 1)])
    @pytest.mark.parametrize(("dtype", "keep"), KEEPS)
    def test_blocks_of_any_size(self, emulator, dtype, keep, threads, size):
        lists = Lists.draw([(size,), (3,), (size + 1,)], dtype, keep=keep)
        check_masked_sgd(EmulatedOps(emulator, threads).masked_sgd_, lists, momentum=0.9, weight_decay=0.1)

    @pytest.mark.parametrize("count", [1, 79, 80, 81, 200])
    def test_lists_that_fit_a_launch_and_longer_ones(self, emulator, count):
        lists = Lists.draw([(1 + i % 9,) for i in range(count)])
        check_masked_sgd(EmulatedOps(emulator, 32).masked_sgd_, lists, momentum=0.9)

    @pytest.mark.parametrize("moved", ["params", "grads", "momentum_buffers", "masks"])
    @pytest.mark.parametrize(("dtype", "keep"), KEEPS)
    def test_data_that_is_not_aligned(self, emulator, dtype, keep, moved):
        lists = Lists.draw([(301,)], dtype, keep=keep)
        (tensor,) = getattr(lists, moved)
        getattr(lists, moved)[0] = torch.cat([tensor[:1], tensor])[1:]
        check_masked_sgd(EmulatedOps(emulator).masked_sgd_, lists, momentum=0.9)


class TestSmTaylorKernel:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("classes", [2, 3, 4, 5, 8, 9, 10, 16, 17, 31, 33, 64, 65, 100, 128, 129, 1003])
    def test_classes_around_the_lanes_of_a_row(self, emulator, dtype, classes):
        logits, labels = draw_logits(7, classes, dtype=dtype)
        check_sm_taylor(EmulatedOps(emulator).sm_taylor_softmax, logits, labels)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("classes", [10, 200, 1000])
    def test_place_and_alignment_of_a_row(self, emulator, dtype, classes):
        op, (logits, labels) = EmulatedOps(emulator, 0).sm_taylor_softmax, draw_logits(9, classes, dtype=dtype)
        signal = check_sm_taylor(op, logits, labels)
        check_sm_taylor(op, unaligned(logits), labels)
        assert torch.equal(signal[7:], op(logits[7:].clone(), labels[7:].clone()))

    @pytest.mark.parametrize(
        ("dtype", "classes", "threads", "rows"),
        pairs(DTYPES, [2, 10, 40], shapes((64, 0), (32, 1), (128, 5), (64, 41), (128, 130))),
    )
    def test_rows_and_blocks(self, emulator, dtype, classes, threads, rows):
        logits, labels = draw_logits(rows, classes, dtype=dtype)
        check_sm_taylor(EmulatedOps(emulator, threads).sm_taylor_softmax, logits, labels)

    @pytest.mark.parametrize(("dtype", "floor", "order"), pairs(DTYPES, [None, 1e-3], ops.TAYLOR_ORDERS))
    def test_orders_and_models(self, emulator, dtype, order, floor):
        settings = {"order": order, "margin": -0.3, "temperature": 1.5, "floor": floor}
        for classes in (10, 70):
            logits, labels = draw_logits(3 * 5, classes, dtype=dtype)
            models = logits.view(3, 5, classes)
            check_sm_taylor(EmulatedOps(emulator).sm_taylor_softmax, models, labels[:5], **settings)

    @pytest.mark.parametrize(("dtype", "classes", "floor"), pairs(DTYPES, [2, 10, 40], [None, 1e-3]))
    def test_rows_without_an_answer_leave_the_others_alone(self, emulator, dtype, classes, floor):
        logits, labels = draw_logits(30, classes, dtype=dtype)
        labels[3], labels[14], logits[20, 1], logits[22, labels[22]] = -1, classes, torch.nan, torch.nan
        signal = check_sm_taylor(EmulatedOps(emulator).sm_taylor_softmax, logits, labels, floor=floor)
        assert signal.isnan().nonzero().flatten().tolist() == [3, 14, 20, 22]


# -------------------------------------------------------------------------------------------------------------- races


def find_races(kernels: Path, folder: Path) -> str:
    """What ThreadSanitizer says of the kernels in this csrc; empty when it says nothing."""
    flags = ["-fsanitize=thread", "-O1", "-g", f"-I{EMULATOR}", f"-I{kernels}"]
    command = [compile_cpp(EMULATOR / "race_check.cpp", folder / "race_check", *flags)]
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


# --------------------------------------------------------------------------------------------------------- CUDA build


class CudaBuild(NamedTuple):
    library: Path
    kernels: compiler.Kernels
    wide: compiler.Kernels


@pytest.fixture(scope="session")
def cuda_build(once) -> CudaBuild:
    """The extension with its CUDA kernels, and what the compiler said of them; a GPU need not be there."""

    def build(folder: Path) -> None:
        built = compiler.build(folder)
        (folder / "said").write_text(built.stdout + built.stderr)

    folder = once("cuda_build", build)
    said = (folder / "said").read_text()
    if "FORCE_CUDA=1 needs a CUDA toolkit" in said and os.environ.get("AMUN_REQUIRE_NVCC") != "1":
        pytest.skip(said.strip())
    libraries = [*(folder / "lib").rglob("_C*.so")]
    assert len(libraries) == 1, said
    return CudaBuild(libraries[0], compiler.reported(said), compiler.wide_in_ptx(folder / "ptx"))


class TestCompiledKernels:
    def test_all_are_there_for_every_architecture(self, cuda_build):
        names = [set(kernels) for kernels in cuda_build.kernels.values()]
        assert sorted(cuda_build.kernels) == ["sm_100", "sm_80", "sm_90"]
        assert names[0] == names[1] == names[2] == set(cuda_build.wide["sm_90"])
        ops_of = {name.partition("<")[0] for name in names[0]}
        assert ops_of == {"attack_loss", "search_step", "masked_sgd", "sm_taylor"}

    def test_no_kernel_spills_or_needs_local_memory(self, cuda_build):
        for architecture, kernels in cuda_build.kernels.items():
            for name, facts in kernels.items():
                assert facts["spilled"] == facts["stack"] == 0, (architecture, name, facts)

    def test_enough_blocks_have_room_on_a_multiprocessor(self, cuda_build):
        """Four of those that have an image of 3x32x32, and 256 threads: 65,536 registers in all."""
        for architecture, kernels in cuda_build.kernels.items():
            assert kernels["search_step<float, true>"]["registers"] <= 64, architecture

    @pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
    def test_whole_rows_move_16_bytes_at_a_time(self, cuda_build, architecture):
        per_load = {"float": 4, "double": 2, "Half": 8, "BFloat16": 8}
        for name, counts in cuda_build.wide[architecture].items():
            op, _, arguments = name.removesuffix(">").partition("<")
            *rest, dtype = arguments.split(", ")
            if op == "sm_taylor":  # order, width, dtype
                assert (counts["wide loads"] > 0) == (int(rest[1]) == per_load[dtype]), (name, counts)
            elif op == "masked_sgd" or "true" in arguments:
                assert counts["wide loads"] >= 2, (name, counts)
                assert counts["wide stores"] >= 2, (name, counts)
            else:
                assert counts["wide loads"] == counts["wide stores"] == 0, (name, counts)


class TestCudaBuild:
    def test_loads_and_registers_where_there_is_no_gpu(self, cuda_build):
        script = f"""
import torch
torch.ops.load_library({str(cuda_build.library)!r})
for name in {extension.OPS!r}:
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("amun_ext::" + name, key), (name, key)
assert not torch.cuda.is_initialized()
"""
        loaded = run([sys.executable, "-c", script], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        assert loaded.returncode == 0, loaded.stderr

    def test_refuses_a_cuda_call_where_there_is_no_gpu(self, cuda_build):
        script = f"""
import torch
torch.ops.load_library({str(cuda_build.library)!r})
cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
try:
    torch.ops.amun_ext.attack_loss.default.redispatch(cuda, torch.zeros(3, 2), torch.zeros(3).long(), "margin")
except RuntimeError as error:
    print("refused:", error)
"""
        refused = run([sys.executable, "-c", script], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        assert refused.returncode == 0, refused.stderr
        assert refused.stdout.startswith("refused: ")
