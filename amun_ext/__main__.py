"""python -m amun_ext: the command line."""

import sys

from amun_command import main

sys.exit(main())
