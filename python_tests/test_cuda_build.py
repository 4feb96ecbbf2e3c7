"""What the compiler makes of the CUDA kernels, and that the CUDA build loads where there is no GPU."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from emulator import ROOT, run

from amun_ext import extension

pytestmark = pytest.mark.slow
sys.path.append(str(ROOT / "benchmarks"))
import kernels as compiler  # noqa: E402


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
