"""How well was it forgotten? Attacks, measures with intervals, and a verdict by a stated rule (paper section 3)."""

from amun_ext.audit.answers import Answers
from amun_ext.audit.audit import audit
from amun_ext.audit.references import load_references, train_references
from amun_ext.audit.result import Audit
from amun_ext.audit.shadows import Shadows, load_shadows, train_shadows
from amun_ext.audit.verdict import MARGIN, Verdict

__all__ = [
    "MARGIN",
    "Answers",
    "Audit",
    "Shadows",
    "Verdict",
    "audit",
    "load_references",
    "load_shadows",
    "train_references",
    "train_shadows",
]
