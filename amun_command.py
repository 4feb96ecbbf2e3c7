"""The command amun. Until it can end in order, while torch is imported, a Ctrl-C ends it at once and without a word.

A module of its own, because any in the package comes after the imports of the package.
"""

import signal


def main() -> int:
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from amun_ext import cli

    signal.signal(signal.SIGINT, before)
    return cli.main()
