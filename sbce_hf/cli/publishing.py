"""`sbce push`: models and Spaces to the Hub."""

import argparse
from typing import Any

from .push_labels import add_labels
from .pushing import add_push_command, push, push_folder


def add(commands: Any) -> None:
    """Add the command and its subcommands."""
    summary = "publish a model, label maps or a Space on the Hugging Face Hub"
    parser = commands.add_parser("push", help=summary, description=summary[0].upper() + summary[1:] + ".")
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True)

    model = add_push_command(kinds, "model", _model, "publish a trained model with its card")
    model.add_argument("source", metavar="DIR", help="a run directory, a stage's directory or a model folder")
    model.add_argument("repo_id", metavar="REPO_ID", help="user/name")
    model.add_argument(
        "--part",
        choices=("classifier", "segmenter"),
        help="of a run directory: the last round's classifier (default), or the segmenter",
    )
    model.add_argument(
        "--contact-sheet",
        action=argparse.BooleanOptionalAction,
        help="show photos of the training data on the card, if you may publish them (default: only those of the "
        "embedded example)",
    )

    space = add_push_command(kinds, "space", _space, "publish the page on which visitors try a checkpoint")
    space.add_argument("repo_id", metavar="REPO_ID", help="user/name")
    space.add_argument(
        "--checkpoint", metavar="ID", required=True, help="a model on the Hub, with an optional @revision"
    )
    add_labels(kinds)


def _model(options: argparse.Namespace) -> int:
    from ..hub.models import MODEL_FILES, find_model, render_model_folder

    source = find_model(options.source, options.part)
    with push_folder(options) as folder:
        rendered = render_model_folder(
            source,
            options.repo_id,
            folder,
            license=options.license,
            tags=options.tags,
            contact_sheet=options.contact_sheet,
            with_tag=not options.create_pr,
        )
        message = f"Publish a {rendered.kind} with sbce_hf"
        push(options, folder, "model", message=message, delete_patterns=MODEL_FILES, tag=rendered.tag)
    if not options.dry_run:
        print(f"\n{rendered.load}")
    return 0


def _space(options: argparse.Namespace) -> int:
    from ..hub.spaces import SPACE_FILES, render_space_folder, require_checkpoint

    with push_folder(options) as folder:
        render_space_folder(options.repo_id, options.checkpoint, folder, license=options.license, tags=options.tags)
        if not options.dry_run:
            require_checkpoint(options.checkpoint)
        message = "Publish the page of a checkpoint with sbce_hf"
        push(options, folder, "space", message=message, delete_patterns=SPACE_FILES, space_sdk="gradio")
    return 0
