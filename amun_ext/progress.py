"""Progress: a bar on a terminal or in a notebook, one line at the end in a file."""

import sys
from typing import Any

from tqdm import std
from tqdm.auto import tqdm


class _Line(std.tqdm):  # type: ignore[misc]
    """One line at the end; none without progress."""

    disable: bool

    def display(self, *_: object, **__: object) -> bool:
        return True

    def close(self) -> None:
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        if not self.n:  # after an InputError, which is the only line of output
            return
        took = self.format_interval(self._time() - self.start_t)
        more = f", {self.postfix}" if self.postfix else ""
        self.fp.write(f"{self.desc.removesuffix(': ')}: {self.n} of {self.total} in {took}{more}\n")


def progress_bar(shown: bool, *arguments: Any, **options: Any) -> Any:
    """As `tqdm`; silent unless `shown`."""
    notebook = any(kind.__name__ == "tqdm_notebook" for kind in tqdm.__mro__)
    bar = tqdm if notebook or (shown and sys.stderr.isatty()) else _Line
    return bar(*arguments, disable=not shown, **options)
