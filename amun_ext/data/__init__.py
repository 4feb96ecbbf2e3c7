"""Labelled images by name, from files, or from the user's own function: tensors in [0, 1]."""

from amun_ext.data.duplicates import find_duplicates, find_near_copies
from amun_ext.data.images import ImageDataset, fingerprint
from amun_ext.data.load import DATASETS, load
from amun_ext.data.manifest import aligned, classes_of, manifest_of, training_data, without
from amun_ext.data.splits import Splits, as_tensors

__all__ = [
    "DATASETS",
    "ImageDataset",
    "Splits",
    "aligned",
    "as_tensors",
    "classes_of",
    "find_duplicates",
    "find_near_copies",
    "fingerprint",
    "load",
    "manifest_of",
    "training_data",
    "without",
]
