"""What a reader must know before the verdict: a model that has barely changed, or that is broken."""

from collections.abc import Mapping

import numpy as np

from amun_ext.audit.measures import AUDITED, ORIGINAL, RETRAINED, Seen

UNCHANGED = 0.1  # median change of the log-odds of forget samples, below which a model has barely changed
BROKEN = 5.0  # points of test accuracy below the baseline's


def flags(seen: Mapping[str, Seen]) -> list[str]:
    """Sentences, none where all is well."""
    found, audited = [], seen[AUDITED]
    if ORIGINAL in seen:
        before, after = (each.attacks["confidence"]["forget"] for each in (seen[ORIGINAL], audited))
        changed = float(np.median(np.abs(after - before)))
        if changed < UNCHANGED:
            found.append(
                f"no-op: the model barely changed (median change of the forget samples' log-odds {changed:.2g}, "
                f"less than {UNCHANGED:g})"
            )
    name = next((name for name in (RETRAINED, ORIGINAL) if name in seen), None)
    if name is not None:
        accuracy = {of: seen[of].right("test").double().mean().item() * 100 for of in (name, AUDITED)}
        lost = accuracy[name] - accuracy[AUDITED]
        if lost > BROKEN:
            found.append(f"broken: {lost:.1f} points of test accuracy below the {name} model's {accuracy[name]:.1f} %")
    return found
