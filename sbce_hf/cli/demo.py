"""`sbce demo`."""

import argparse
from typing import Any

from .common import CHECKPOINT, add_command


def add(commands: Any) -> None:
    """Add the command."""
    demo = add_command(commands, "demo", _demo, "try a checkpoint in the browser")
    demo.add_argument("--checkpoint", metavar="DIR_OR_ID", required=True, help=CHECKPOINT)
    demo.add_argument(
        "--image-size",
        metavar="PIXELS",
        type=int,
        help="side to which photos are resized, as in the classifier's training (default: the checkpoint's image "
        "processor's, else the photo's own)",
    )
    demo.add_argument("--port", type=int, help="of the local server (default: the first free one from 7860 on)")
    demo.add_argument("--share", action="store_true", help="also make a public link that lasts some days")


def _demo(options: argparse.Namespace) -> int:
    from ..runs.early import check_checkpoint

    checkpoint = check_checkpoint(options.checkpoint, any_kind=True)
    try:
        from ..demo.page import LAUNCH, build_demo
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise OSError("sbce demo needs gradio: pip install 'sbce-hf[space]'") from error
    build_demo(checkpoint, options.image_size).launch(server_port=options.port, share=options.share, **LAUNCH)
    return 0
