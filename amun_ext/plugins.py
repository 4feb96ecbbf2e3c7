"""Tables with rows by name, to which installed packages add rows by entry points."""

import threading
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

Row = TypeVar("Row")


class PluginTable(MutableMapping[str, Row], Generic[Row]):
    """Name -> row: those of this package, then those of the entry points of `group`.

    Other packages are imported when the table is first read. An entry point that cannot be used is left out with a
    warning that names its package.
    """

    def __init__(self, group: str, kind: type[Row], own: Mapping[str, Row]) -> None:
        self.group, self.kind, self.own = group, kind, own
        self.read: dict[str, Row] | None = None
        self.lock = threading.RLock()

    @property
    def rows(self) -> dict[str, Row]:
        with self.lock:
            if self.read is None:
                self.read = dict(self.own)  # for a package that reads the table while it is imported
                for entry in entry_points(group=self.group):
                    self._add(self.read, entry)
            return self.read

    def _add(self, rows: dict[str, Row], entry: EntryPoint) -> None:
        reason, row = "the name exists already", None
        if entry.name not in rows:
            try:
                row = entry.load()
                reason = f"it must be of type {self.kind.__name__}, got {type(row).__name__}"
            except Exception as error:  # it is another package's, and may raise anything
                reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        if isinstance(row, self.kind):
            rows[entry.name] = row
            return
        package = "an unknown package" if entry.dist is None else f"the package {entry.dist.name}"
        warnings.warn(f"{self.group}: {entry.name} of {package} is left out: {reason}", RuntimeWarning, stacklevel=2)

    def __getitem__(self, name: str) -> Row:
        return self.rows[name]

    def __setitem__(self, name: str, row: Row) -> None:
        self.rows[name] = row

    def __delitem__(self, name: str) -> None:
        del self.rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)
