"""``python -m stack``."""

import sys

import stack.util.clock  # noqa: F401  # First: it notes when.
from stack.cli import main

if __name__ == "__main__":
    sys.exit(main())
