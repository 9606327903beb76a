"""`sbce push`: models, label maps and Spaces to the Hub."""

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .common import Command, add_command, config_from, say

if TYPE_CHECKING:
    from ..hub.publish import Published


def add(commands: Any) -> None:
    """Add the command and its subcommands."""
    summary = "publish a model, label maps or a Space on the Hugging Face Hub"
    parser = commands.add_parser("push", help=summary, description=summary[0].upper() + summary[1:] + ".")
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True)

    model = _add_push_command(kinds, "model", _model, "publish a trained model with its card")
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

    space = _add_push_command(kinds, "space", _space, "publish the page on which visitors try a checkpoint")
    space.add_argument("repo_id", metavar="REPO_ID", help="user/name")
    space.add_argument(
        "--checkpoint", metavar="ID", required=True, help="a model on the Hub, with an optional @revision"
    )
    _add_labels(kinds)


def _model(options: argparse.Namespace) -> int:
    from ..runs.early import check_folder

    check_folder(options.source, "a run directory, a stage's directory or a model folder")

    from ..hub.models import MODEL_FILES, find_model, render_model_folder

    source = find_model(options.source, options.part)
    with _push_folder(options) as folder:
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
        _push(options, folder, "model", message=message, delete_patterns=MODEL_FILES, tag=rendered.tag)
    if not options.dry_run:
        say(f"\n{rendered.load}")
    return 0


def _space(options: argparse.Namespace) -> int:
    from ..hub.spaces import SPACE_FILES, render_space_folder, require_checkpoint

    with _push_folder(options) as folder:
        render_space_folder(options.repo_id, options.checkpoint, folder, license=options.license, tags=options.tags)
        if not options.dry_run:
            require_checkpoint(options.checkpoint)
        message = "Publish the page of a checkpoint with sbce_hf"
        _push(options, folder, "space", message=message, delete_patterns=SPACE_FILES, space_sdk="gradio")
    return 0


def _add_labels(commands: Any) -> None:
    labels = _add_push_command(commands, "labels", _labels, "publish label maps as a dataset")
    labels.add_argument("store", metavar="STORE", help="a label store, or a run directory")
    labels.add_argument("repo_id", metavar="REPO_ID", help="user/name; it may hold other configurations already")
    labels.add_argument(
        "--config", metavar="NAME", help="of the dataset's configuration (default: as in round_2_paper)"
    )
    labels.add_argument(
        "--append", action="store_true", help="add label maps of images that the configuration lacks; replace nothing"
    )
    labels.add_argument("--with-images", action="store_true", help="publish the recipe's photos too, if you may")
    labels.add_argument("--recipe", metavar="NAME", help="whose data are the photos of --with-images")
    labels.add_argument("--data-dir", metavar="DIR", help="the recipe's data.data_dir")
    labels.add_argument("--split", help="the photos' split instead of the recipe's train_split")
    labels.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key of the recipe, as in data.partial=true",
    )
    labels.set_defaults(trunk_weights=None, seed=None, strict=False)


def _labels(options: argparse.Namespace) -> int:
    if options.with_images != (options.recipe is not None):
        raise UserError("--with-images and --recipe: expected both or none; the recipe says where the photos are")
    config = config_from(options) if options.recipe else None

    from ..runs.early import check_labels

    check_labels(options.store)

    from ..data import load_images
    from ..hub.errors import HubError, require_token
    from ..hub.labels import render_label_folder
    from ..labels.store import LabelStore
    from ..runs.layout import result_of

    if not options.dry_run:
        require_token(options.repo_id)
    store = LabelStore(Path(result_of(options.store, "label_maps")))
    images = None if config is None else load_images(config.data, options.split or config.data.train_split)
    with _push_folder(options) as folder:
        try:
            rendered = render_label_folder(
                store,
                options.repo_id,
                folder,
                config_name=options.config,
                append=options.append,
                images=images,
                license=options.license,
                tags=options.tags,
                revision=options.revision,
                with_tag=not options.create_pr,
            )
        except HubError as error:
            if not options.dry_run:
                raise
            raise HubError(
                f"{error} To write the files without asking the Hub what is there, set HF_HUB_OFFLINE=1"
            ) from error
        info = rendered.info
        say(f"config: {rendered.config_name} ({info.num_images} label maps, {rendered.num_new} of them in this push)")
        message = f"Publish label maps {rendered.config_name} with sbce_hf"
        _push(
            options,
            folder,
            "dataset",
            message=message,
            parent_commit=rendered.parent_commit,
            delete_patterns=rendered.replaced,
            tag=info.tag,
        )
    if not options.dry_run:
        at = f"@{info.tag}" if info.tag else ""
        labels = f"{options.repo_id}{at}:{rendered.config_name}"
        say(f"\nsbce train-segmenter --recipe RECIPE --labels {labels} --output-dir segmenter")
    return 0


def _add_push_command(commands: Any, name: str, function: Command, summary: str) -> argparse.ArgumentParser:
    """Add a subcommand with the options that all pushes have."""
    parser = add_command(commands, name, function, summary)
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--revision", metavar="BRANCH", help="push to this branch, which is made if there is none")
    where.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--dry-run", action="store_true", help="only write the files, and say where; send nothing")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace and delete files of the repository that no push has written"
    )
    parser.add_argument("--tags", metavar="A,B,...", type=_names, default=[], help="more tags for the card")
    parser.add_argument("--license", metavar="ID", help="as the Hub names it, as in apache-2.0")
    return parser


@contextmanager
def _push_folder(options: argparse.Namespace) -> Iterator[Path]:
    """An empty folder for what is pushed; a dry run's stays. Folders of pushes that were killed go."""
    from ..files import is_running
    from ..hub.errors import explained_disk

    with explained_disk(options.repo_id):
        if options.dry_run:
            yield Path(tempfile.mkdtemp(prefix="sbce-dry-run-"))
            return
        for left in Path(tempfile.gettempdir()).glob("sbce-push-*-*"):
            number = left.name.split("-")[2]
            if number.isdigit() and not is_running(int(number)):
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"sbce-push-{os.getpid()}-") as folder:
            yield Path(folder)


def _push(options: argparse.Namespace, folder: Path, repo_type: str, **how: Any) -> "Published | None":
    """Publish a rendered folder and say where it is, or with `--dry-run` what would be sent."""
    from ..hub.publish import folder_files, publish_folder

    if options.dry_run:
        target = "a pull request" if options.create_pr else f"branch {options.revision or 'main'}"
        say(f"would push to {repo_type} {options.repo_id}, {target}; nothing was sent")
        for name in folder_files(folder):
            say(f"{(folder / name).stat().st_size:12,}  {name.as_posix()}")
        say(f"files: {folder}")
        return None
    send: Callable[..., Published] = publish_folder
    done = send(
        folder,
        options.repo_id,
        repo_type,
        private=options.private,
        revision=options.revision,
        create_pr=options.create_pr,
        overwrite=options.overwrite,
        **how,
    )
    say(f"url:    {done.url}")
    say(f"commit: {done.commit}")
    if done.tag:
        say(f"tag:    {done.tag}")
    if options.create_pr and done.pull_request is None:
        say("no pull request: the repository holds these files already")
    return done


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
