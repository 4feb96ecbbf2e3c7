"""Checks of arguments: an error names the argument, what it must be, and what it was."""

import math
import pkgutil
import reprlib
import sys
import unicodedata
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, TypeGuard

SHOWN = 3  # names in one message
SHORT = reprlib.Repr()
SHORT.maxstring = 80  # enough for digests, most paths, and names of functions
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: controls, surrogates, separators of lines
DIRECTION_MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
CYRILLIC, GREEK = "аеорсухіјѕһԁԛԝАВЕКМНОРСТХІЈЅ", "οανΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"  # noqa: RUF001
LATIN_LOOKALIKES = str.maketrans(CYRILLIC + GREEK, "aeopcyxijshdqwABEKMHOPCTXIJS" + "oavABEZHIKMNOPTYX")


class InputError(ValueError):
    """An argument is not what it must be. Raised before any work starts; the command line prints it as one line.

    Examples:
        >>> import torch
        >>> from amun_ext import MaskedSGD
        >>> MaskedSGD([torch.zeros(1, requires_grad=True)], lr=-1.0)
        Traceback (most recent call last):
        amun_ext.validation.InputError: lr must be a finite number, not negative, got -1.0
    """


class RefusedResultError(RuntimeError):
    """The new model was refused; `status` is the exit status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def require(condition: bool, argument: str, expected: str, actual: object) -> None:
    """Raise `InputError("<argument> must be <expected>, got <actual>")` unless `condition` holds; of a value that takes
    several lines, such as a module or a tensor, the first one."""
    if not condition:
        first, *more = str(actual).splitlines() or [""]
        raise InputError(f"{argument} must be {expected}, got {first}{' ...' * bool(more)}")


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """The entries in which two mappings differ, with both values; empty if they are equal."""
    actual, expected = _flat(found), _flat(wanted)
    names = [name for name in {**expected, **actual} if actual.get(name) != expected.get(name)]
    pairs = [(name, *(SHORT.repr(each.get(name)) for each in (actual, expected))) for name in names]
    return listed([f"{name} {value} instead of {other}" for name, value, other in pairs])


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """The entries of inner mappings under joined names."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def printable(text: str) -> str:
    """`text` in one line, with escapes for control characters and marks of direction."""

    def escaped(each: str) -> bool:
        return each in DIRECTION_MARKS or unicodedata.category(each) in UNPRINTABLE

    return "".join(ascii(each)[1:-1] if escaped(each) else each for each in text)


def unambiguous(name: str) -> str:
    """A name, with escapes if another one could look the same: if it is not in its composed form, or has characters
    without a width, unusual spaces, or only letters that look Latin but are not."""
    plain = all(each == " " or unicodedata.category(each) not in ("Cf", "Zs") for each in name)
    plain = plain and unicodedata.is_normalized("NFC", name)
    looks_latin = not name.isascii() and name.translate(LATIN_LOOKALIKES).isascii()
    return printable(name) if plain and not looks_latin else ascii(name)[1:-1]


def check_bounds(bounds: object) -> tuple[float, float]:
    """(low, high), infinite for None. InputError for anything but a pair of numbers with low < high."""
    ends: Any = (-math.inf, math.inf) if bounds is None else bounds
    pair = isinstance(ends, tuple | list) and len(ends) == 2 and all(is_number(end) for end in ends)
    require(pair and ends[0] < ends[1], "bounds", "(low, high) with low < high, or None", bounds)
    return ends[0], ends[1]


def call_user_function(what: str, name: str, **arguments: object) -> object:
    """The result of the user's "module:function". InputError if it cannot be imported or fails.

    Its module may be in the current folder, which becomes the last entry of the import path and stays there, because
    the result may import more.
    """
    if "" not in sys.path:
        sys.path.append("")
    try:
        function = pkgutil.resolve_name(name)
    except (Exception, SystemExit) as error:  # the module is the user's, and may raise anything
        reason = str(error) or type(error).__name__
        raise InputError(f"{what} {name!r} must be an importable module:function, got {reason}") from error
    require(callable(function), f"{what} {name!r}", "a function", type(function).__name__)
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:
        call = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        raise InputError(f"{what} {call} must return, got {type(error).__name__}: {error}") from error


def check_integer(name: str, value: object, least: int) -> int:
    """`value` as Python's int, as torch and JSON need it. InputError for anything but an integer from `least` on."""
    number = int(value) if is_integer(value) else -1
    expected = f"a whole number from {least} on" + ", below 2**31" * (number >= 2**31)
    require(least <= number < 2**31, name, expected, repr(value))
    return number


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is an integer of Python or NumPy, not a bool."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number of Python or NumPy that a float can hold, not a bool."""
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and isinstance(float(value), float)
    except OverflowError:  # of a large int
        return False
