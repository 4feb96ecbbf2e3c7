"""python -m amun_ext.cli"""

import sys

from amun_ext.cli import main

sys.exit(main())
