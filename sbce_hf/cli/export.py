"""`sbce export`."""

import argparse
from pathlib import Path
from typing import Any

from .common import LABELS, add_command, say

# As in the room `export`, which is not loaded for a help text; a test compares them.
FORMATS = ("coco", "yolo", "voc", "labelstudio", "cvat", "masks")


def add(commands: Any) -> None:
    """Add the command."""
    export = add_command(commands, "export", _export, "write label maps in the format of another program")
    export.add_argument("labels", metavar="STORE_OR_ID", help=LABELS)
    export.add_argument("--format", choices=FORMATS, required=True, help="of the program")
    export.add_argument("--output-dir", metavar="DIR", required=True, help="a new folder")
    export.add_argument("--photos", metavar="DIR", help="the photos' folder, to write their files' names")


def _export(options: argparse.Namespace) -> int:
    from ..runs.early import check_labels, check_writable

    labels = check_labels(options.labels)
    check_writable(Path(options.output_dir))

    from ..export import ExportSource, export_label_maps
    from ..labels.hub_store import open_label_maps

    source = ExportSource(open_label_maps(labels), None if options.photos is None else Path(options.photos))
    notes = export_label_maps(source, options.format, Path(options.output_dir))
    for note in notes:
        say(f"note:   {note}")
    say(f"export: {options.output_dir} ({len(source)} label maps, {len(source.class_names)} classes)")
    return 0
