"""The result of an audit, and its files."""

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amun_ext.auditing.document import document
from amun_ext.auditing.members import Members
from amun_ext.auditing.verdict import Verdict
from amun_ext.files import atomic_folder, to_jsonable, workplace, write_text
from amun_ext.metrics.measures import AUDIT_MEASURES, Estimate, Measure, Observation
from amun_ext.report import Document, Result

FILES = ("audit.json", "audit.md", "audit.html")
PICTURES = 12


@dataclass(frozen=True, eq=False)
class Audit(Result):
    """What `audit` has found. Numbers that do not exist are NaN here and null in JSON."""

    verdict: Verdict  # the worst of `verdicts`, see `amun_ext.auditing.verdict`
    verdicts: Mapping[str, Verdict]  # by attack
    flags: Sequence[str]  # warnings
    rows: Mapping[str, Mapping[str, Estimate]]  # model -> measure
    attacks: Mapping[str, Mapping[str, Mapping[str, Estimate]]]  # attack -> model -> FT, FR, RT AUC and TPR @ 1 % FPR
    members: Members  # forget samples that still look like members
    harm: Mapping[str, float]  # what happened to retained samples
    runs: Mapping[str, float]  # FT AUC of U-LiRA over other runs of the method; empty without shadows
    observations: Mapping[str, Observation]
    pictures: Sequence[NDArray[np.float32]]  # [C, H, W], of the first of `members`, PICTURES at most
    classes: Sequence[str]
    sizes: Mapping[str, int]
    facts: Mapping[str, object]

    @property
    def measures(self) -> list[Measure]:
        """The measures with a value for some model."""
        measured = {name for row in self.rows.values() for name, number in row.items() if not math.isnan(number.value)}
        return [measure for measure in AUDIT_MEASURES if measure.name in measured]

    def to_dict(self) -> dict[str, object]:
        """Everything but logits and scores, as plain JSON values."""
        keys = ("verdict", "verdicts", "flags", "rows", "attacks", "members", "harm", "runs", "sizes", "facts")
        explained = {measure.name: measure.explanation for measure in self.measures}
        return {key: to_jsonable(getattr(self, key)) for key in keys} | {"columns": explained}

    def document(self) -> Document:
        return document(self)

    def write(self, folder: str | os.PathLike[str], *, with_images: bool = False, place: Path | None = None) -> None:
        """Write FILES into `folder`, all or none. `with_images`: the page shows some of the forget samples.

        place: the workplace in `folder`, where there is one.
        """
        own = workplace(folder, "audit") if place is None else contextlib.nullcontext(place)
        with own as place, atomic_folder(folder, place) as files:
            self.to_json(files / FILES[0])
            write_text(files / FILES[1], self.to_markdown())
            self.to_html(files / FILES[2], with_images=with_images)
