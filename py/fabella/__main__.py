"""``python -m fabella``: see :mod:`fabella.cli`."""

import sys

try:
    from fabella.cli import main
except KeyboardInterrupt:  # while wasmtime is loaded
    sys.exit(130)

sys.exit(main())
