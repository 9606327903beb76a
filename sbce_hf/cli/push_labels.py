"""`sbce push labels`."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import UserError
from .common import config_from
from .pushing import add_push_command, push, push_folder


def add_labels(push_commands: Any) -> None:
    """Add the command to those of `sbce push`."""
    labels = add_push_command(push_commands, "labels", _push, "publish label maps as a dataset")
    labels.add_argument("store", metavar="STORE", help="a label store")
    labels.add_argument("repo_id", metavar="REPO_ID", help="user/name; it may hold other configurations already")
    labels.add_argument(
        "--config", metavar="NAME", help="of the dataset's configuration (default: as in round_2_paper_crf)"
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


def _push(options: argparse.Namespace) -> int:
    if options.with_images != (options.recipe is not None):
        raise UserError("--with-images and --recipe: expected both or none; the recipe says where the photos are")
    config = config_from(options) if options.recipe else None

    from ..data import load_images
    from ..hub.errors import HubError, require_token
    from ..hub.labels import render_label_folder
    from ..labelling.store import LabelStore

    if not options.dry_run:
        require_token(options.repo_id)
    store = LabelStore(Path(options.store))
    images = None if config is None else load_images(config.data, options.split or config.data.train_split)
    with push_folder(options) as folder:
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
        print(
            f"config: {rendered.config_name} ({info.num_images} label maps, {rendered.num_new} of them in this push)"
        )
        message = f"Publish label maps {rendered.config_name} with sbce_hf"
        push(
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
        print(f"\nsbce train-segmenter --recipe RECIPE --labels {labels} --output-dir segmenter")
    return 0
