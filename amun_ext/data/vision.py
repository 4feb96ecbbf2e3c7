"""Import torchvision when it is needed, even if its compiled ops cannot be loaded."""

import importlib
import sys
from types import ModuleType
from typing import Any

from amun_ext.validation import InputError

INSTALL = "pip install amun_ext[vision]"


def import_torchvision() -> Any:
    """The torchvision module with its `datasets` and `models`; InputError with the install command where it is absent.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its operators are missing, and the import fails
    in the one file that describes them to the compiler. Data sets and models need none of them: that file is left out.
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
