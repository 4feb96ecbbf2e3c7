"""python -m amun_ext: the command line."""

import sys
from pathlib import Path

# `python -m` imports from the current folder first, where an html.py may be that is another.
if not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).parents[1]:
    del sys.path[0]

from amun_command import main

sys.exit(main())
