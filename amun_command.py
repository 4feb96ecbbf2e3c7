"""The command amun, and `python -m amun_ext`.

A module of its own, because any in the package comes after the imports of the package.
"""

import signal
import sys
from pathlib import Path

# Until it can end in order, while torch is imported, a Ctrl-C ends it at once and without a word.
BEFORE = signal.signal(signal.SIGINT, signal.SIG_DFL)

# `python -m` imports from the current folder first, where an html.py may be that is another.
if sys.argv[0] == "-m" and not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).parent:
    del sys.path[0]


def main() -> int:
    from amun_ext import cli

    signal.signal(signal.SIGINT, BEFORE)
    return cli.main()
