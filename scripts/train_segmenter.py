"""`sbce train-segmenter`, to be started by `accelerate launch` or `torchrun`."""

import sys

from sbce_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-segmenter", *sys.argv[1:]]))
