"""The Space: the page of one checkpoint, named by the variable SBCE_CHECKPOINT or in checkpoint.txt beside this."""

import os
import traceback
from pathlib import Path

import gradio as gr

from sbce_hf.demo.page import LAUNCH, build_demo, message_page
from sbce_hf.runs.provenance import without_folders
from sbce_hf.text import code_block, code_span


def named_checkpoint() -> str | None:
    """The variable's value, else what the file says."""
    file = Path(__file__).with_name("checkpoint.txt")
    return os.environ.get("SBCE_CHECKPOINT") or (file.read_text(encoding="utf-8").strip() if file.is_file() else None)


def page(checkpoint: str | None) -> gr.Blocks:
    """The checkpoint's page, or one that says what is missing."""
    if not checkpoint:
        return message_page(
            "The variable `SBCE_CHECKPOINT` is not set. Set it in the Space's settings, under *Variables and "
            "secrets*, to a model's id on the Hub, as in `user/model` or `user/model@revision`, and restart the Space."
        )
    try:
        return build_demo(checkpoint)
    except Exception as error:
        # Whatever a stranger's checkpoint makes of it: visitors see why there is no page, its owner the log.
        traceback.print_exc()
        said = without_folders(f"{type(error).__name__}: {error}")
        return message_page(
            f"The checkpoint is {code_span(checkpoint)}, and that cannot be loaded. Check the name (the variable "
            "`SBCE_CHECKPOINT`, else the file `checkpoint.txt`) and, for a private model, the secret `HF_TOKEN`; then "
            f"restart the Space.\n\n{code_block(said)}"
        )


demo = page(named_checkpoint())

if __name__ == "__main__":
    demo.launch(**LAUNCH)
