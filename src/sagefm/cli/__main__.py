"""``python -m sagefm.cli``."""

import sys

from sagefm.cli import main

sys.exit(main())
