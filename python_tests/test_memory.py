"""Memory that a training keeps for its next batch."""

import json
import subprocess
import sys

import pytest

MEBIBYTES_SEEN = """
import json, resource
from amun_ext.memory import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20

def use_and_free():
    blocks = [b"x" * (48 * 2**20) for _ in range(8)]  # each larger than any that glibc keeps by itself

before = resident()
with keep_freed_memory():
    use_and_free()
    kept = resident()
given_back = resident()
use_and_free()
print(json.dumps([seen - before for seen in (kept, given_back, resident())]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc")
def test_freed_memory_is_kept_and_given_back() -> None:
    """In a process of its own, by resident memory: page faults depend on the kernel's free huge pages."""
    found = subprocess.run([sys.executable, "-c", MEBIBYTES_SEEN], capture_output=True, text=True, check=True).stdout
    kept, given_back, afterwards = json.loads(found)
    assert kept > 7 * 48
    assert given_back < 48
    assert afterwards < 48
