"""``python -m stack``."""

import stack.util.clock  # noqa: F401  # First: it notes when.
from stack.cli import main
from stack.util.exits import leave
from stack.util.process import settle

if __name__ == "__main__":
    settle()
    leave(main())
