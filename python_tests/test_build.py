"""What is said when the extension is missing, does not fit or cannot be built, and what a build is made of."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from kill_tools import HANG

from amun_ext import extension

ROOT = Path(__file__).resolve().parent.parent
FOUND = f"found torch {torch.__version__} on Python {sys.version.split()[0]}"
TORCH_VARIABLES = ("FORCE_CUDA", "USE_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "DEBUG")


def python(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Another Python, whose build is governed by `environment` alone."""
    inherited = {key: value for key, value in os.environ.items() if key not in TORCH_VARIABLES}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )


class TestLoading:
    """A copy of the package with something else in the place of its library."""

    @pytest.fixture
    def package(self, tmp_path) -> Path:
        shutil.copytree(
            ROOT / "amun_ext", tmp_path / "amun_ext", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.npz")
        )
        return tmp_path / "amun_ext"

    def import_error(self, package: Path) -> str:
        imported = python("-c", "import amun_ext.ops", cwd=package.parent, PYTHONPATH=str(package.parent))
        assert imported.returncode == 1
        last_lines = imported.stderr.strip().split("\nImportError: ")[-1]
        assert last_lines.splitlines()[-1].strip() == extension.REBUILD
        assert FOUND in last_lines
        return last_lines

    def test_nothing_was_built(self, package):
        assert f"amun_ext: nothing was built (no _C*.so in {package})" in self.import_error(package)

    def test_not_a_library(self, package):
        (package / "_C.abi3.so").write_bytes(b"no library at all")
        assert "does not load: built with unknown settings; found torch" in self.import_error(package)

    def test_built_for_another_machine(self, package):
        library = bytearray(extension.library().read_bytes())
        library[4] = 1  # the class of the ELF file: 32 bit
        (package / "_C.abi3.so").write_bytes(library)
        message = self.import_error(package)
        built = ", ".join(f"{key} {value}" for key, value in extension.build_record().items())
        assert f"does not load: built with {built}; found torch" in message
        assert f"torch {torch.__version__}" in built
        assert "wrong ELF class" in message

    def test_older_than_the_package(self, package):
        source = package.parent / "old.cpp"
        source.write_text(
            "#include <Python.h>\n"
            'PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1};\n'
            "PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }\n"
        )
        compiler, include = os.environ.get("CXX", "g++"), sysconfig.get_paths()["include"]
        command = [compiler, "-shared", "-fPIC", f"-I{include}", source, "-o", package / "_C.abi3.so"]
        subprocess.run(command, check=True)
        message = self.import_error(package)
        missing = ["attack_loss", "search_step_", "masked_sgd_", "sm_taylor_softmax"]
        assert f"the extension is older than the package, it lacks {missing}" in message

    def test_imports_nothing_heavy_and_leaves_cuda_alone(self):
        script = """
import sys, torch
from amun_ext import *
assert not torch.cuda.is_initialized()
print([name for name in ("torchvision", "matplotlib", "sklearn") if name in sys.modules])
"""
        imported = python("-c", script)
        assert imported.returncode == 0, imported.stderr
        assert imported.stdout.strip() == "[]"


class TestRecord:
    def test_says_what_the_library_was_built_with(self):
        record = extension.build_record()
        assert record["torch_target"] == "2.11"
        assert set(record) == {"torch", "torch_target", "python", "cuda", "cuda_architectures", "flags"}


# Runs setup.py up to the point where a command would begin, and shows the extension that it would build.
SHOW = """
import json, setuptools
from distutils.core import run_setup
(extension,) = run_setup("setup.py", stop_after="init").ext_modules
(record,) = [flag for flag in extension.extra_compile_args["cxx"] if flag.startswith("-DAMUN_BUILD_RECORD=")]
record = json.loads(json.loads(record.removeprefix("-DAMUN_BUILD_RECORD=")))
print(json.dumps({"sources": extension.sources, "flags": extension.extra_compile_args["cxx"], "record": record}))
"""


@pytest.mark.slow
class TestSetup:
    @pytest.fixture
    def toolkit(self, tmp_path) -> Path:
        """A pretended CUDA toolkit, whose nvcc answers questions but compiles nothing."""
        (tmp_path / "bin").mkdir()
        (tmp_path / "include").mkdir()
        (tmp_path / "include/cuda_runtime.h").touch()
        self.pretend(tmp_path, "compute_75 compute_80 compute_90")
        return tmp_path

    def pretend(self, toolkit: Path, architectures: str) -> None:
        nvcc = toolkit / "bin/nvcc"
        nvcc.write_text(
            "#!/bin/sh\n"
            'case "$1" in\n'
            f"  --list-gpu-arch) printf '%s\\n' {architectures} ;;\n"
            "  --version) echo 'Cuda compilation tools, release 12.9, V12.9.41' ;;\n"
            "  *) exit 1 ;;\n"
            "esac\n"
        )
        nvcc.chmod(0o755)

    def show(self, **environment: str) -> dict:
        shown = python("-c", SHOW, **environment)
        assert shown.returncode == 0, shown.stderr
        return json.loads(shown.stdout)

    def test_without_torch_says_what_to_do(self, tmp_path):
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch/__init__.py").write_text("raise ImportError('no torch here')")
        built = python("setup.py", "build_ext", "--build-lib", tmp_path / "lib", PYTHONPATH=str(tmp_path))
        assert built.returncode == 1
        assert built.stderr.strip() == (
            "amun_ext: the build needs torch: pip install torch, then pip install --no-build-isolation ."
        )

    def test_forced_cuda_without_a_toolkit_says_what_to_do(self):
        script = """
import runpy, shutil, sys
from pathlib import Path
from torch.utils import cpp_extension
cpp_extension.CUDA_HOME = None
shutil.which = lambda name: None
Path.exists = lambda path: False
sys.argv = ["setup.py", "--version"]
runpy.run_path("setup.py", run_name="__main__")
"""
        built = python("-c", script, FORCE_CUDA="1")
        assert built.returncode == 1
        assert built.stderr.strip() == (
            "amun_ext: FORCE_CUDA=1 needs a CUDA toolkit (bin/nvcc, include/cuda_runtime.h); set CUDA_HOME"
        )

    def test_for_the_cpu_only(self, toolkit):
        shown = self.show(USE_CUDA="0", CUDA_HOME=str(toolkit))
        assert not any(source.startswith("csrc/cuda") for source in shown["sources"])
        assert "csrc/cpu/search_step.cpp" in shown["sources"]
        assert shown["record"]["cuda"] is None
        assert shown["record"]["cuda_architectures"] is None

    def test_default_gpus_are_those_that_nvcc_knows(self, toolkit):
        shown = self.show(FORCE_CUDA="1", CUDA_HOME=str(toolkit))
        assert "csrc/cuda/search_step.cu" in shown["sources"]
        assert shown["record"]["cuda"] == "12.9"
        assert shown["record"]["cuda_architectures"] == "8.0;9.0+PTX"

    def test_nvcc_that_knows_none_of_them(self, toolkit):
        self.pretend(toolkit, "compute_60 compute_75")
        built = python("setup.py", "--version", FORCE_CUDA="1", CUDA_HOME=str(toolkit))
        assert built.returncode == 1
        (line,) = built.stderr.strip().splitlines()
        assert line.startswith(f"amun_ext: {toolkit}/bin/nvcc knows none of")
        assert line.endswith("set TORCH_CUDA_ARCH_LIST")

    @pytest.mark.parametrize("known", ["compute_75 compute_80", "compute_60 compute_75"])
    def test_named_gpus(self, toolkit, known):
        self.pretend(toolkit, known)
        shown = self.show(FORCE_CUDA="1", CUDA_HOME=str(toolkit), TORCH_CUDA_ARCH_LIST="7.5")
        assert shown["record"]["cuda_architectures"] == "7.5"

    def test_optimised_unless_debugged(self):
        assert "-O3" in self.show(USE_CUDA="0")["flags"]
        debugged = self.show(USE_CUDA="0", DEBUG="1")["flags"]
        assert "-O0" in debugged
        assert "-O3" not in debugged
