"""How close is each model to one that was retrained? A table of measures, and a page (paper section 3)."""

from amun_ext.evaluation.report import Report, evaluate

__all__ = ["Report", "evaluate"]
