"""The command amun, and `python -m amun_ext`.

A module of its own, because any in the package comes after the imports of the package.
"""

import signal

# Until it can end in order, during the first imports, a Ctrl-C ends it at once and without a word.
BEFORE = signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> int:
    from amun_ext import cli

    signal.signal(signal.SIGINT, BEFORE)
    return cli.main()
