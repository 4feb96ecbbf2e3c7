"""Names and defaults that help texts show, in a module without torch, so that `amun --help` does not wait for it.

The names of tables are here a second time; a test compares them.
"""

from importlib.metadata import entry_points

TABLES = {  # those of `amun_ext.plugins`
    "datasets": ("fashion-mnist-mini", "digits", "fashion-mnist", "cifar10", "tiny-imagenet"),
    "attacks": ("pgd", "ddn", "deepfool", "ffgsm"),
    "methods": (
        *("retrain", "ft", "rl", "ga", "bs", "bad-teacher", "scrub", "neggrad+", "ssd", "msg", "ct", "regun"),
        *("l1-sparse", "salun", "amun", "distill", "amun+salun"),
    ),
}
MODELS = ("small-cnn", "resnet18", "resnet18-amun", "vgg19")
PRESETS = ("amun-paper", "amun-paper-large", "amun-code", "unlearn-saliency", "unlearn-saliency-2023")
OBJECTIVES = ("held-out", "retrain")  # of tuning
SETTINGS = ("with", "without")  # of a comparison: the retain set
SCALES = ("smoke", "small", "paper", "tiny-imagenet")  # of experiments

COMPARED = ("ft", "rl", "ga", "bs", "l1-sparse", "salun", "amun", "amun:no-forget", "amun+salun")
SEARCHED = ("pgd", "ddn", "ffgsm")
CURVE_SAMPLES = 200  # of each curve of a comparison of searches, at most
EQUIVALENCE_MARGIN = 5.0  # points of AUC
MAX_ACCURACY_DROP = 5.0  # of tuning; refuses only broken models: on 1,500 images a point or two of accuracy is noise
# Distances of near copies, for images whose shorter side is below so many pixels and from it on.
LARGE_IMAGE, NEAR_COPY, LARGE_NEAR_COPY = 64, 0.001, 0.05


def names(table: str) -> tuple[str, ...]:
    """The names in one of TABLES, also those of entry points, without importing other packages."""
    added = (entry.name for entry in entry_points(group=f"amun_ext.{table}"))
    return tuple(dict.fromkeys([*TABLES[table], *added]))
