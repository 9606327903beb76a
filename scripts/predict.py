"""`sbce predict`, to be started by `accelerate launch` or `torchrun`."""

import sys

from sbce_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
