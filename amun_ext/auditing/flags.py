"""What a reader must know before the verdict: a model that has barely changed, or that is broken."""

from collections.abc import Mapping

from amun_ext.auditing.verdict import AUDITED, ORIGINAL, RETRAINED
from amun_ext.evaluation import remarks
from amun_ext.metrics.measures import Observation


def no_op(observations: Mapping[str, Observation]) -> str:
    """That the audited model is the one before, for the most part; empty where it is another or that one is unknown."""
    if ORIGINAL not in observations:
        return ""
    return remarks.no_op(*(observations[name].attacks["confidence"]["forget"] for name in (ORIGINAL, AUDITED)))


def flags(observations: Mapping[str, Observation]) -> list[str]:
    """Sentences, none where all is well."""
    found = {"no-op": no_op(observations)}
    name = next((name for name in (RETRAINED, ORIGINAL) if name in observations), None)
    if name is not None:
        ours, theirs = (observations[of].right("test").double().mean().item() * 100 for of in (AUDITED, name))
        found["broken"] = remarks.broken(ours, name, theirs)
    return [f"{kind}: {told}" for kind, told in found.items() if told]
