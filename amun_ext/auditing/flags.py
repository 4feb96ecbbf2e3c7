"""What a reader must know before the verdict: a model that has barely changed, or that is broken."""

from collections.abc import Mapping

from amun_ext.auditing.verdict import AUDITED, ORIGINAL, RETRAINED
from amun_ext.evaluation import remarks
from amun_ext.metrics.measures import Observation


def no_op(seen: Mapping[str, Observation]) -> str:
    """That the audited model is the one before, for the most part; empty where it is another or that one is unknown."""
    if ORIGINAL not in seen:
        return ""
    return remarks.no_op(*(seen[name].attacks["confidence"]["forget"] for name in (ORIGINAL, AUDITED)))


def flags(seen: Mapping[str, Observation]) -> list[str]:
    """Sentences, none where all is well."""
    found = {"no-op": no_op(seen)}
    name = next((name for name in (RETRAINED, ORIGINAL) if name in seen), None)
    if name is not None:
        ours, theirs = (seen[of].right("test").double().mean().item() * 100 for of in (AUDITED, name))
        found["broken"] = remarks.broken(ours, name, theirs)
    return [f"{kind}: {told}" for kind, told in found.items() if told]
