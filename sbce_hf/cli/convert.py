"""`sbce import`."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import require_regular
from .common import add_command, say


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "import", _import, "convert weights of other programs; the file tells which")
    parser.add_argument(
        "file",
        metavar="FILE",
        help="the released program's checkpoint (.pth), ResNet-38's ImageNet weights (MXNet .params), with --trunk "
        "a checkpoint of that network (.safetensors, .pth, .bin, .ckpt) by timm's or torchvision's names, or a folder "
        "of timm's from the Hub",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        required=True,
        help="a folder for the released program's checkpoint; FILE.safetensors for a trunk (--trunk-weights reads it)",
    )
    parser.add_argument("--trunk", metavar="NAME", help="read FILE as weights of this timm model, or of resnet38")
    parser.add_argument(
        "--prefix", metavar="NAME", help="of a trunk: what its names start with, where a file holds it more than once"
    )
    parser.add_argument(
        "--image-mean",
        metavar="R,G,B",
        help="of a trunk: what its weights were trained with, of values in [0, 1] (default: what timm says of NAME)",
    )
    parser.add_argument("--image-std", metavar="R,G,B", help="of a trunk: standard deviation, alike")
    parser.add_argument(
        "--interpolation",
        choices=("nearest", "bilinear", "bicubic", "lanczos"),
        help="of a trunk: how photos are resized",
    )
    parser.add_argument("--classes", metavar="A,B,...", help="class names (default: VOC's for 20, COCO's for 80)")


def _import(options: argparse.Namespace) -> int:
    source = Path(options.file)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file")

    if not source.is_dir():
        require_regular(source)

    from ..importers.mxnet_params import is_params
    from ..importers.writing import check_output, write_classifier, write_trunk

    is_trunk = options.trunk is not None or source.is_dir() or is_params(source)
    if is_trunk and options.classes is not None:
        raise UserError("--classes: got class names, expected none, as a trunk has no classes")
    record = _record(options)
    if options.prefix is not None and not is_trunk:
        raise UserError("--prefix: is for a trunk; name its network with --trunk")
    if record is not None and not is_trunk:
        raise UserError("--image-mean, --image-std: are for a trunk; the released program has ImageNet's")
    output = check_output(options.output, is_trunk)
    if is_trunk:
        from ..importers.trunks import import_trunk

        state, report = import_trunk(source, options.trunk, options.prefix)
        write_trunk(state, output, record or report.preprocessing)
    else:
        from ..importers.released import import_released

        names = None if options.classes is None else [name.strip() for name in options.classes.split(",")]
        model, report = import_released(source, names)
        write_classifier(model, output)
    say(report)
    say(f"{'trunk weights' if is_trunk else 'classifier'}: {output}")
    return 0


def _record(options: argparse.Namespace) -> dict[str, Any] | None:
    """What the options say that the weights are to be fed with."""
    mean, std = (_three(options, name) for name in ("image_mean", "image_std"))
    if mean is None and std is None and options.interpolation is None:
        return None
    if mean is None or std is None:
        raise UserError(
            "--image-mean, --image-std, --interpolation: got only some of them, expected mean and deviation"
        )
    return {"image_mean": mean, "image_std": std, "interpolation": options.interpolation or "bilinear"}


def _three(options: argparse.Namespace, name: str) -> list[float] | None:
    text = getattr(options, name)
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(0 <= number <= 1 for number in numbers):
        raise UserError(
            f"--{name.replace('_', '-')}: got {text!r}, expected three numbers of 0 to 1, as in 0.5,0.5,0.5"
        )
    return numbers
