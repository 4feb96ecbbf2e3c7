"""Load the compiled extension `amun_ext._C`, or report what was built, what was found, and how to fix it."""

import importlib
import json
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

REBUILD = (
    "Rebuild: pip install --no-build-isolation --force-reinstall --no-deps . (or: python setup.py build_ext --inplace)"
)
OPS = ("attack_loss", "search_step_", "masked_sgd_", "sm_taylor_softmax")


def library() -> Path | None:
    """The extension's file, or None if it was not built."""
    return next(iter(sorted(Path(__file__).parent.glob("_C*.so"))), None)


@cache
def build_record() -> dict[str, Any]:
    """The versions and flags of the build, read from the file without loading it; empty if there is none."""
    path = library()
    match = re.search(rb"AMUN_BUILD_RECORD(\{[^\0]*\})\0", path.read_bytes()) if path else None
    return json.loads(match[1]) if match else {}


def load() -> None:
    """Load the extension, which registers its ops as `torch.ops.amun_ext.*`. Raises ImportError."""
    found = f"found torch {torch.__version__} on Python {platform.python_version()}, {platform.machine()}"
    if library() is None:
        raise ImportError(f"amun_ext: nothing was built (no _C*.so in {Path(__file__).parent}); {found}.\n  {REBUILD}")
    built = "built with " + (", ".join(f"{key} {value}" for key, value in build_record().items()) or "unknown settings")
    try:
        importlib.import_module("amun_ext._C")
    except ImportError as error:
        raise ImportError(f"amun_ext: the extension does not load: {built}; {found}: {error}\n  {REBUILD}") from error
    missing = [name for name in OPS if not hasattr(torch.ops.amun_ext, name)]
    if missing:
        raise ImportError(
            f"amun_ext: the extension is older than the package, it lacks {missing}: {built}; {found}.\n  {REBUILD}"
        )
