"""`python -m kinfold` is `kinfold`."""

import sys

from kinfold.cli import main

if __name__ == "__main__":
    sys.exit(main())
