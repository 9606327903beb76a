"""What the subcommands of `sbce push` share: options, the dry run, and what is said at the end."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import Command, add_command

if TYPE_CHECKING:
    from ..hub.publish import Published


def add_push_command(commands: Any, name: str, function: Command, summary: str) -> argparse.ArgumentParser:
    """Add a subcommand with the options that all pushes have."""
    parser = add_command(commands, name, function, summary)
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--revision", metavar="BRANCH", help="push to this branch, which is made if there is none")
    where.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--dry-run", action="store_true", help="only write the files, and say where; send nothing")
    parser.add_argument("--tags", metavar="A,B,...", type=_names, default=[], help="more tags for the card")
    parser.add_argument("--license", metavar="ID", help="as the Hub names it, as in apache-2.0")
    return parser


@contextmanager
def push_folder(options: argparse.Namespace) -> Iterator[Path]:
    """An empty folder for what is pushed; a dry run's stays."""
    from ..hub.errors import explained_disk

    with explained_disk(options.repo_id):
        if options.dry_run:
            yield Path(tempfile.mkdtemp(prefix="sbce-push-"))
        else:
            with tempfile.TemporaryDirectory(prefix="sbce-push-") as folder:
                yield Path(folder)


def push(options: argparse.Namespace, folder: Path, repo_type: str, **how: Any) -> "Published | None":
    """Publish a rendered folder and say where it is, or with `--dry-run` what would be sent."""
    from ..hub.publish import folder_files, publish_folder

    if options.dry_run:
        target = "a pull request" if options.create_pr else f"branch {options.revision or 'main'}"
        print(f"would push to {repo_type} {options.repo_id}, {target}; nothing was sent")
        for name in folder_files(folder):
            print(f"{(folder / name).stat().st_size:12,}  {name.as_posix()}")
        print(f"files: {folder}")
        return None
    send: Callable[..., Published] = publish_folder
    done = send(
        folder,
        options.repo_id,
        repo_type,
        private=options.private,
        revision=options.revision,
        create_pr=options.create_pr,
        **how,
    )
    print(f"url:    {done.url}")
    print(f"commit: {done.commit}")
    if done.tag:
        print(f"tag:    {done.tag}")
    if options.create_pr and done.pull_request is None:
        print("no pull request: the repository holds these files already")
    return done


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
