"""`python -m amun_ext.info`: versions, the ops available per device, and how the extension was built."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

import amun_ext
from amun_ext.extension import OPS, build_record, library, load


def now() -> str:
    """UTC, as ISO 8601 has it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    packages = ("numpy", "safetensors", "scikit-learn", "matplotlib")
    return {
        "amun_ext": amun_ext.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def processor() -> str:
    """The name of the CPU model."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def devices() -> dict[str, str]:
    """The devices of torch, by dispatch key."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    about = (processor(), platform.machine(), f"{os.cpu_count()} cores", f"{memory:.0f} GiB")
    found = {"CPU": f"{', '.join(each for each in about if each)}, {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        found["CUDA"] = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return found


def has_kernel(op: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"amun_ext::{op}", key))


def text() -> str:
    """The output of `amun info`."""
    load()
    path, found = library(), devices()
    kernels = {
        key: [op for op in OPS if has_kernel(op, key)] + ([] if key in found else ["(no such device here)"])
        for key in ("CPU", "CUDA")
    }
    sections = {
        "versions": versions(),
        "devices": found,
        "ops": {key: ", ".join(names) for key, names in kernels.items()},
        "extension": {"file": path.name if path else "none", **build_record()},
    }
    lines = []
    for title, entries in sections.items():
        lines.append(title)
        lines += [f"  {name:18} {value if value is not None else '-'}" for name, value in entries.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(text())
