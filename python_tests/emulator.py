"""The CUDA kernels on CPU threads, in place of those of the CPU (cuda_emulator/emulator.cpp)."""

import fcntl
import hashlib
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from kill_tools import HANG
from torch.utils.cpp_extension import include_paths, library_paths

from amun_ext import extension, ops

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "python_tests/cuda_emulator"
COMPILER = [os.environ.get("CXX", "g++"), "-std=c++20", "-pthread", "-Wall", "-Wno-unknown-pragmas"]


def run(command: list[str | Path], **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG, **kwargs)


def compile_cpp(source: Path, output: Path, *flags: str) -> Path:
    built = run([*COMPILER, source, "-o", output, *flags])
    assert built.returncode == 0, built.stderr
    return output


@cache
def load() -> None:
    """Build the emulator under build/, unless what it is made of is unchanged, and register its kernels."""
    folders = [SOURCES, ROOT / "csrc", *include_paths(), sysconfig.get_paths()["include"]]
    flags = ["-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags += [*(f"-I{folder}" for folder in folders), *(f"-L{folder}" for folder in library_paths())]
    made_of = hashlib.sha256(f"{COMPILER} {flags} {torch.__version__}".encode())
    for file in sorted([*SOURCES.iterdir(), *(ROOT / "csrc").rglob("*.*h")]):
        made_of.update(file.read_bytes())
    library = ROOT / "build/cuda_emulator" / f"{made_of.hexdigest()[:16]}.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    with (library.parent / "lock").open("w") as lock:  # by one process of a run, while the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # whole or not at all
                built = compile_cpp(SOURCES / "emulator.cpp", Path(folder) / "module.so", *flags, "-ltorch_cpu")
                built.replace(library)
    torch.ops.load_library(library)


@contextmanager
def emulated(block_size: int = 0) -> Iterator[None]:
    """amun_ext.ops runs the CUDA kernels, in blocks of so many threads; 0: as they are launched on a GPU."""
    load()
    torch.ops.amun_emulator.set_block_size(block_size)
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
    with pytest.MonkeyPatch.context() as patch:
        for name in extension.OPS:
            op = getattr(torch.ops.amun_ext, name).default
            patch.setattr(ops, f"_{name.removeprefix('_')}", partial(op.redispatch, key))
        yield
