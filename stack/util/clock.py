"""When this process began."""

from __future__ import annotations

import time

BEGAN = time.time()
"""Unix time, s; the command line imports this first, so that loading torch counts."""
