"""Builds amun_ext._C, the C++/CUDA extension; everything else about the package stands in pyproject.toml.

FORCE_CUDA=1          build the CUDA kernels although torch is a CPU build or no GPU is there
USE_CUDA=0            build for the CPU only
CUDA_HOME             the CUDA toolkit, where it is not found by itself
TORCH_CUDA_ARCH_LIST  the GPUs to build for (default: 8.0, 9.0 and 10.0 as far as nvcc knows them, and PTX)
MAX_JOBS, DEBUG=1     as for any torch extension; -O0 -g
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_TARGET_VERSION = "0x020b000000000000"  # the stable ABI of torch 2.11: one binary for it and all later ones
ARCHITECTURES = ("8.0", "9.0", "10.0")


class BuildNeedsTorch(build_ext):
    def run(self) -> None:
        sys.exit("amun_ext: the build needs torch: pip install torch, then pip install --no-build-isolation .")


def switch(name: str, default: bool) -> bool:
    value = os.getenv(name) or str(int(default))
    if value not in ("0", "1"):
        sys.exit(f"amun_ext: {name} must be 0 or 1, got {value!r}")
    return value == "1"


def cuda_toolkit() -> Path | None:
    """A toolkit has bin/nvcc and include/cuda_runtime.h; an nvcc on the PATH may be a wrapper that lives elsewhere."""
    candidates = [os.getenv("CUDA_HOME"), os.getenv("CUDA_PATH"), cpp_extension.CUDA_HOME]
    if nvcc := shutil.which("nvcc"):
        dryrun = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", "-E", os.devnull], capture_output=True, text=True, check=False
        )
        candidates += re.findall(r"TOP=(.+)", dryrun.stderr)
    candidates.append("/usr/local/cuda")
    for candidate in candidates:
        root = Path(candidate.strip()).resolve() if candidate else None
        if root and (root / "bin/nvcc").exists() and (root / "include/cuda_runtime.h").exists():
            return root
        if candidate and candidate == os.getenv("CUDA_HOME"):
            sys.exit(f"amun_ext: CUDA_HOME must be a toolkit (bin/nvcc, include/cuda_runtime.h), got {candidate}")
    return None


def default_architectures(toolkit: Path) -> str:
    listed = subprocess.run([toolkit / "bin/nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = [arch for arch in ARCHITECTURES if f"compute_{arch.replace('.', '')}" in listed.stdout.split()]
    if not known:
        sys.exit(f"amun_ext: {toolkit}/bin/nvcc knows none of {ARCHITECTURES}; set TORCH_CUDA_ARCH_LIST")
    return ";".join(known) + "+PTX"


def sources(folder: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).iterdir() if path.suffix in (".cpp", ".cu"))


def extension() -> Extension:
    force, use = switch("FORCE_CUDA", False), switch("USE_CUDA", True)
    if force and not use:
        sys.exit("amun_ext: FORCE_CUDA=1 and USE_CUDA=0 contradict each other")
    toolkit = cuda_toolkit() if force or (use and torch.version.cuda) else None
    if force and not toolkit:
        sys.exit("amun_ext: FORCE_CUDA=1 needs a CUDA toolkit (bin/nvcc, include/cuda_runtime.h); set CUDA_HOME")

    optimise = ["-O0", "-g"] if os.getenv("DEBUG") == "1" else ["-O3"]
    common = [*optimise, "-std=c++20", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    flags = {"cxx": [*common, "-Wall", "-fvisibility=hidden", "-fopenmp-simd"]}
    arguments = {"include_dirs": [str(ROOT / "csrc")]}
    files = sources("csrc") + sources("csrc/cpu")
    architectures = ""
    if toolkit:
        cpp_extension.CUDA_HOME = str(toolkit)  # torch sets it to None in a CPU build
        architectures = os.getenv("TORCH_CUDA_ARCH_LIST") or default_architectures(toolkit)
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
        flags["nvcc"] = [*common, "-lineinfo"]
        files += sources("csrc/cuda")
        arguments["include_dirs"].append(str(toolkit / "include"))
        arguments["library_dirs"] = [str(toolkit / lib) for lib in ("lib64", "lib") if (toolkit / lib).is_dir()]
        # Static, and no libtorch_cuda: the same binary then loads where torch has no CUDA.
        arguments["libraries"] = ["cudart_static", "dl", "rt", "pthread"]

    record = {
        "torch": torch.__version__,
        "torch_target": "2.11",
        "python": ">=3.11",
        "cuda": toolkit_version(toolkit) if toolkit else None,
        "cuda_architectures": architectures or None,
        "flags": " ".join(flag for flag in flags["cxx"] if not flag.startswith("-D")),
    }
    flags["cxx"].append(f"-DAMUN_BUILD_RECORD={json.dumps(json.dumps(record))}")
    return cpp_extension.CppExtension(
        "amun_ext._C",
        files,
        extra_compile_args=flags,
        # libtorch.so brings libtorch_cuda.so along where there is one; the linker must not drop it as unused.
        extra_link_args=["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"],
        py_limited_api=True,
        **arguments,
    )


def toolkit_version(toolkit: Path) -> str:
    told = subprocess.run([toolkit / "bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+)", told)[1]


try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    extensions, build_command = [Extension("amun_ext._C", [])], BuildNeedsTorch
else:

    class BuildWithNinja(cpp_extension.BuildExtension):
        """Without ninja a changed header or setting would silently keep the old objects."""

        def run(self) -> None:
            if not cpp_extension.is_ninja_available():
                sys.exit("amun_ext: the build needs ninja: pip install ninja")
            super().run()

    extensions, build_command = [extension()], BuildWithNinja

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": build_command},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
