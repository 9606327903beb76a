"""The Space: the page of one checkpoint, named by the variable SBCE_CHECKPOINT or in checkpoint.txt beside this."""

import os
from pathlib import Path

import gradio as gr

from sbce_hf.demo.page import LAUNCH, build_demo, message_page


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
    except (OSError, ValueError) as error:
        return message_page(
            f"The checkpoint is `{checkpoint}`, and that cannot be loaded. Check the name (the variable "
            "`SBCE_CHECKPOINT`, else the file `checkpoint.txt`) and, for a private model, the secret `HF_TOKEN`; then "
            f"restart the Space.\n\n```\n{error}\n```"
        )


demo = page(named_checkpoint())

if __name__ == "__main__":
    demo.launch(**LAUNCH)
