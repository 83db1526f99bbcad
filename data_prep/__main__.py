"""`python -m data_prep`."""

from data_prep.cli import main
from stack.util.process import settle

if __name__ == "__main__":
    settle()
    raise SystemExit(main())
