"""`sbce predict`."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import UserError
from .common import CHECKPOINT, add_command, say
from .console import quiet_loading


def add(commands: Any) -> None:
    """Add the command."""
    predict = add_command(
        commands, "predict", _predict, "label photos with a segmentation network; no tags are needed"
    )
    predict.add_argument("input", nargs="+", metavar="INPUT", help="photos, and folders of photos at any depth")
    predict.add_argument(
        "--checkpoint", metavar="DIR_OR_ID", required=True, help=f"a trained segmentation network: {CHECKPOINT}"
    )
    predict.add_argument(
        "--output-dir", metavar="DIR", required=True, help="gets label maps, overlays/ and skipped.json"
    )
    predict.add_argument("--no-overlays", action="store_true", help="do not draw the label maps over the photos")
    predict.add_argument("--scales", metavar="S,S,...", help="sizes at which a photo is looked at, as in 0.75,1,1.25")
    predict.add_argument("--window", type=int, metavar="N", help="side of a sliding window, for photos beyond memory")
    predict.add_argument("--strict", action="store_true", help="stop at the first unreadable photo")
    predict.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key of the recipes' segmenter.prediction, as in flip=false, image_size=640 or crf={} (a dense CRF)",
    )


def _predict(options: argparse.Namespace) -> int:
    from ..config import PredictionConfig, from_mapping, merge, parse_override

    values: dict[str, Any] = {}
    if options.scales is not None:
        values["scales"] = _numbers(options.scales)
    if options.window is not None:
        values["window"] = options.window
    for text in options.set:
        values = merge(values, parse_override(text))
    # A wrong key is told before torch is loaded.
    from_mapping(PredictionConfig, values, "prediction")

    from ..runs.early import check_checkpoint, check_paths, check_writable

    check_writable(Path(options.output_dir))
    check_paths(options.input)
    checkpoint = check_checkpoint(options.checkpoint, "segmenter")

    from ..runs.single import predict_photos

    quiet_loading()
    output_dir = Path(options.output_dir)
    summary = predict_photos(checkpoint, options.input, values, output_dir, options.strict, not options.no_overlays)
    say(f"label maps: {summary.directories[-1]}")
    if not options.no_overlays:
        say(f"overlays:   {output_dir / 'overlays'}")
    say(f"{summary.num_labelled} labelled now, {summary.num_images} photos in all, {len(summary.skipped)} skipped")
    if summary.skipped:
        say(f"skipped:    {output_dir / 'skipped.json'}")
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise UserError(f"--scales {text!r}: expected numbers separated by commas, as in 0.75,1,1.25") from error
