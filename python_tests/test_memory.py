"""Memory that a training keeps for its next batch."""

import resource
import sys

import pytest
import torch

from amun_ext.memory import keep_freed_memory

PAGES = 48 * 2**20 // resource.getpagesize()  # of a tensor larger than any that glibc keeps by itself


def faults() -> int:
    """Pages that the kernel clears for one tensor."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(48 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc")
def test_freed_memory_is_kept_and_given_back() -> None:
    with keep_freed_memory():
        kept = min(faults() for _ in range(10))  # small objects behind the first ones may split the freed block
    assert kept < PAGES // 2
    assert faults() > PAGES // 2
