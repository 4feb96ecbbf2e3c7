"""How well was it forgotten? Attacks, measures with intervals, and a verdict by a stated rule (paper section 3)."""

from amun_ext.auditing.audit import audit
from amun_ext.auditing.model_signals import ModelSignals
from amun_ext.auditing.references import load_references, train_references
from amun_ext.auditing.result import Audit
from amun_ext.auditing.shadows import Shadows, load_shadows, train_shadows
from amun_ext.auditing.targets import prepare_from_references
from amun_ext.auditing.verdict import Verdict

__all__ = [
    "Audit",
    "ModelSignals",
    "Shadows",
    "Verdict",
    "audit",
    "load_references",
    "load_shadows",
    "prepare_from_references",
    "train_references",
    "train_shadows",
]
