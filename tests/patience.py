"""How long the tests wait for a state that must come: a limit only so that one that never comes is found at last.

No test is about how long anything takes. Where a whole run hangs, pytest's own timeout ends it (pyproject.toml).
"""

from __future__ import annotations

import os

PATIENCE = int(os.environ.get("FABELLA_PATIENCE", "600"))  # seconds
