"""``python -m fabella``: see :mod:`fabella.cli`."""

import sys

from fabella.cli import main

sys.exit(main())
