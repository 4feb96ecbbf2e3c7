"""Warnings beside the verdict: the model has barely changed, or has lost much accuracy."""

from collections.abc import Mapping

from amun_ext.auditing.verdict import AUDITED, ORIGINAL, RETRAINED
from amun_ext.evaluation import remarks
from amun_ext.metrics.measures import Observation


def no_op(observations: Mapping[str, Observation]) -> str:
    """That the audited model has barely changed; empty where it has changed or the original is unknown."""
    if ORIGINAL not in observations:
        return ""
    return remarks.no_op(*(observations[name].attacks["confidence"]["forget"] for name in (ORIGINAL, AUDITED)))


def flags(observations: Mapping[str, Observation]) -> list[str]:
    """The warnings."""
    found = {"no-op": no_op(observations)}
    name = next((name for name in (RETRAINED, ORIGINAL) if name in observations), None)
    if name is not None:
        ours, theirs = (observations[of].right("test").double().mean().item() * 100 for of in (AUDITED, name))
        found["broken"] = remarks.broken(ours, name, theirs)
    return [f"{kind}: {warning}" for kind, warning in found.items() if warning]
