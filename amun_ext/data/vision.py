"""Import torchvision when it is needed, even if its compiled ops cannot be loaded."""

import importlib
import sys
from types import ModuleType
from typing import Any

from amun_ext.validation import InputError

INSTALL = "pip install amun_ext[vision]"


def import_torchvision() -> Any:
    """The torchvision module with its `datasets` and `models`. InputError, with the install command, without it.

    PyPI's torchvision is built for CUDA. With a CPU build of torch its operators are missing, and the import fails in
    the file that registers their fake kernels. Data sets and models do not need it, so it is left out.
    """
    try:
        torchvision = importlib.import_module("torchvision")
    except ImportError as error:
        raise InputError(f"this needs torchvision: {INSTALL} ({error})") from error
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
        torchvision = importlib.import_module("torchvision")
    importlib.import_module("torchvision.datasets")
    return torchvision
