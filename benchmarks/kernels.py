"""What the compiler made of the CUDA kernels, for GPUs that need not be there: python benchmarks/kernels.py

Registers, shared memory and spills of every kernel, from the assembler's report; loads and stores of 16 bytes, and all
of those to local memory, from the disassembly, where there is a cuobjdump with its nvdisasm (pip install
nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, and their folder on the PATH). Times are not among it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import write

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("8.0", "9.0", "10.0")
REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>sm_\d+)'\n.*\n"
    r" *(?P<stack>\d+) bytes stack frame, (?P<stored>\d+) bytes spill stores, (?P<loaded>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?"
)
# As PTX and as machine code write them.
WIDE = {
    "ptx": r"\b{}(?:\.global)?(?:\.nc)?\.(?:v4\.\w32|v2\.\w64|b128)",
    "sass": r"\b{}\.E(?:\.\w+)*\.128",
}

Kernels = dict[str, dict[str, Any]]  # by architecture, then by kernel


def build(folder: Path, architectures: tuple[str, ...] = ARCHITECTURES) -> subprocess.CompletedProcess[str]:
    """The extension in `folder`/lib, its PTX in `folder`/ptx, the assembler's report among what is printed."""
    (folder / "ptx").mkdir()
    report = f"-Xptxas=-v --keep --keep-dir={folder / 'ptx'}"
    cuda = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": ";".join(architectures), "NVCC_APPEND_FLAGS": report}
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", folder / "lib", "--build-temp", folder / "temp"],
        cwd=ROOT,
        env={**os.environ, **cuda},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def readable(mangled: list[str]) -> dict[str, str]:
    """search_step_kernel<float, true> of each."""
    names = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout.splitlines()
    kernel = re.compile(r"void amun::(\w+)_kernel<(.*)>\(")
    found = {name: kernel.match(text) for name, text in zip(mangled, names, strict=True)}
    return {
        name: f"{match[1]}<{match[2].replace('(amun::Loss)', 'loss ').replace('c10::', '')}>"
        for name, match in found.items()
        if match
    }


def reported(log: str) -> Kernels:
    matches = list(REPORT.finditer(log))
    names = readable([match["name"] for match in matches])
    kernels: Kernels = {}
    for match in matches:
        kernels.setdefault(match["architecture"], {})[names[match["name"]]] = {
            "registers": int(match["registers"]),
            "shared": int(match["shared"] or 0),
            "stack": int(match["stack"]),
            "spilled": int(match["stored"]) + int(match["loaded"]),
        }
    return kernels


def wide_in_ptx(folder: Path) -> Kernels:
    """How many loads and stores of 16 bytes the PTX has."""
    kernels: Kernels = {}
    for file in sorted(folder.rglob("*.ptx")):
        if not (architecture := re.search(r"compute_(\d+)", file.name)):
            continue
        parts = re.split(r"\.entry (\w+)\(", file.read_text())
        bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
        names = readable(list(bodies)) if bodies else {}
        for name, body in bodies.items():
            kernels.setdefault(f"sm_{architecture[1]}", {})[names[name]] = count_wide("ptx", body, "ld", "st")
    return kernels


def count_wide(language: str, text: str, load: str, store: str) -> dict[str, int]:
    return {
        kind: len(re.findall(WIDE[language].format(instruction), text))
        for kind, instruction in (("wide loads", load), ("wide stores", store))
    }


def disassembled(library: Path) -> Kernels:
    """Empty where there is no disassembler."""
    if not (shutil.which("cuobjdump") and shutil.which("nvdisasm")):
        return {}
    shown = subprocess.run(["cuobjdump", "--dump-sass", library], capture_output=True, text=True, check=True).stdout
    kernels: Kernels = {}
    for section in re.split(r"\narch = ", shown)[1:]:
        parts = re.split(r"\n\s*Function : (\w+)\n", section)
        bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
        names = readable(list(bodies)) if bodies else {}
        for name, body in bodies.items():
            kernels.setdefault(section.split("\n")[0], {})[names[name]] = {
                **count_wide("sass", body, "LDG?", "STG?"),
                "local": len(re.findall(r"\b(?:LDL|STL)\b", body)),
            }
    return kernels


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder))
        if built.returncode:
            sys.exit(built.stdout + built.stderr)
        kernels = reported(built.stdout + built.stderr)
        (library,) = Path(folder, "lib").rglob("_C*.so")
        for architecture, found in disassembled(library).items():
            for name, counts in found.items():
                kernels[architecture][name] |= counts
    write("kernels", {"kernels": kernels})
    for architecture, found in kernels.items():
        spilling = [name for name, facts in found.items() if facts["spilled"] or facts["stack"] or facts.get("local")]
        print(f"{architecture}: {len(found)} kernels, {spilling or 'none'} in local memory")
