"""python -m amun_ext: the command line."""

import sys

from amun_ext.cli import main

sys.exit(main())
