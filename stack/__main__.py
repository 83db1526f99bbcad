"""``python -m stack``."""

import stack.util.clock  # noqa: F401  # First: it notes when.
from stack.cli import main
from stack.util.exits import leave

if __name__ == "__main__":
    leave(main())
