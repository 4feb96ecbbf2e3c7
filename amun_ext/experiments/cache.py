"""Results that are kept: each in a file that is named by a hash of everything that decides it."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amun_ext.distributed import by_first_rank, entered_by_first_rank
from amun_ext.files import to_jsonable, write_json
from amun_ext.locks import locked
from amun_ext.reading import read_object


@dataclass(frozen=True)
class Cache:
    """A folder of finished files. `scratch` is for unfinished ones, and for locks: processes may share both."""

    folder: Path
    scratch: Path

    def path(self, name: str, identity: object, suffix: str = ".json") -> Path:
        """Where the result is, or is to be: the name has a hash of all settings."""
        text = json.dumps(to_jsonable(identity), sort_keys=True)
        return self.folder / f"{name}.{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}{suffix}"

    def values(self, name: str, identity: object, make: Callable[[], Mapping[str, object]]) -> dict[str, Any]:
        """The JSON values that `make` returns, made once; they are kept beside the identity."""
        path, identity = self.path(name, identity), to_jsonable(identity)
        with self._alone(path):
            kept = read_object(path)
            if kept.get("identity") != identity:
                kept = {"identity": identity, **{key: to_jsonable(value) for key, value in make().items()}}
                write_json(path, kept, scratch=self.scratch)
        return {key: value for key, value in kept.items() if key != "identity"}

    def file(self, name: str, identity: object, suffix: str, make: Callable[[Path], object]) -> Path:
        """The file, or folder, that `make` writes, made once; in a process group by all ranks together.

        `make` is given a path that is the same after a kill.
        """
        path = self.path(name, identity, suffix)
        with entered_by_first_rank(self._alone(path)):
            if not by_first_rank(path.exists)():
                make(self.scratch / path.name)
                by_first_rank(self._put_in_place)(path)
        return path

    def _put_in_place(self, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.scratch / path.name).replace(path)

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Another process that makes the same is waited for."""
        with locked(self.scratch / f"{path.name}.lock", path, wait=True):
            yield
