"""`python -m sbce_hf.cli`, where the `sbce` script is not on the path."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
