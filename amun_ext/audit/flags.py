"""What a reader must know before the verdict: a model that has barely changed, or that is broken."""

from collections.abc import Mapping

import numpy as np

from amun_ext.audit.measures import AUDITED, ORIGINAL, RETRAINED, Seen

UNCHANGED = 0.1  # median change of the log-odds of forget samples, below which a model has barely changed
BROKEN = 5.0  # points of test accuracy below the baseline's


def no_op(seen: Mapping[str, Seen]) -> str:
    """That the audited model is the one before, for the most part; empty where it is another or that one is unknown."""
    if ORIGINAL not in seen:
        return ""
    before, after = (seen[name].attacks["confidence"]["forget"] for name in (ORIGINAL, AUDITED))
    changed = float(np.median(np.abs(after - before)))
    if changed >= UNCHANGED:
        return ""
    return (
        f"the model barely changed (median change of the forget samples' log-odds {changed:.2g}, "
        f"less than {UNCHANGED:g})"
    )


def flags(seen: Mapping[str, Seen]) -> list[str]:
    """Sentences, none where all is well."""
    found = [f"no-op: {told}"] if (told := no_op(seen)) else []
    name = next((name for name in (RETRAINED, ORIGINAL) if name in seen), None)
    if name is not None:
        accuracy = {of: seen[of].right("test").double().mean().item() * 100 for of in (name, AUDITED)}
        lost = accuracy[name] - accuracy[AUDITED]
        if lost > BROKEN:
            found.append(f"broken: {lost:.1f} points of test accuracy below the {name} model's {accuracy[name]:.1f} %")
    return found
