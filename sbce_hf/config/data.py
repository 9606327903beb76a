"""Where images and tags come from, and how training images are varied."""

import difflib
from dataclasses import dataclass
from typing import Literal

from huggingface_hub.dataclasses import strict

from ..errors import UserError
from .ranges import Checked, free_switch, free_text, number, shown

# Readers are modules of the room `data` with these names; `data.register_source` adds others.
SOURCES = {"shapes", "voc", "coco", "folder", "hub"}


@strict
@dataclass(kw_only=True)
class DataConfig(Checked):
    """Where images and tags come from.

    Args:
        source: `"shapes"` (the embedded example), `"voc"` (a VOC devkit folder), `"coco"` (COCO's folders), `"folder"`
            (photos and their tags, in any form of `data/layout.py`), `"hub"` (a Hugging Face dataset), or what
            `sbce_hf.register_source` has added.
        data_dir: folder of a `voc`, `coco` or `folder` source.
        tags_file: tags table (of `coco`: instances file), relative to `data_dir`; by default the one that is found
            there.
        separator: what separates the tags of a cell of a tags table or of a text of a dataset; by default `;` in
            tables and nothing in datasets. Once it is given, no tag is suspected of being several.
        classes: foreground classes, in the order of their label-map values 1, 2, ...; by default all the source has.
            Other tags of a `voc` or `coco` source are left out; elsewhere a tag that is not listed is an error. A tag
            that is listed is not suspected of being several.
        train_split: split whose tags are trained on and whose images are labelled.
        score_split: split with masks on which label maps are scored in the report; `None` scores nothing.
        max_images: use only the first so many images of a split.
        strict: stop at the first unreadable image instead of skipping and listing it.
        partial: use what is there of a `voc` or `coco` split instead of stopping because images are missing.
        outside_files: images and masks may lie outside of the data set's own folder: links in it, or paths that a
            dataset's rows name. Such files are read, and with `push labels --with-images` published, so say so only of
            data that are your own.
        unlabelled: what value 255 in a COCO-Stuff mask is for the score: left out, or background.
        dataset: name on the Hub or local path, for source `"hub"`.
        dataset_config: configuration of that dataset.
        revision: git revision of that dataset.
        columns: maps the schema's columns (`image_id`, `image`, `labels`, `mask`) to the dataset's.
        shapes_images: images of the training split of source `"shapes"`.
        shapes_size: height and width of these images in pixels.
        shapes_seed: seed of these images; independent of the run's, so that seeds can be compared on the same images.

    Examples:
        >>> from sbce_hf import DataConfig, load_images
        >>> config = DataConfig(source="shapes", shapes_images=8, shapes_size=48, max_images=6)
        >>> len(load_images(config, config.train_split))
        6
    """

    SECTION = "data"

    source: str = "folder"
    data_dir: str | None = None
    tags_file: str | None = None
    separator: str | None = free_text()
    classes: tuple[str, ...] | None = None
    train_split: str = "train"
    score_split: str | None = None
    max_images: int | None = number(None, at_least=1)
    strict: bool = free_switch(False)
    partial: bool = False
    outside_files: bool = free_switch(False)
    unlabelled: Literal["ignore", "background"] = "ignore"
    dataset: str | None = None
    dataset_config: str | None = None
    revision: str | None = None
    columns: dict[str, str] | None = None
    shapes_images: int = number(320, at_least=1, limit=1_000_000)
    shapes_size: int = number(96, at_least=32, limit=4096)
    shapes_seed: int = number(0, at_least=0)

    def validate_source(self) -> None:
        """It is one that there is, and has what it needs."""
        if self.source not in SOURCES:
            near = difflib.get_close_matches(self.source, SOURCES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(SOURCES))}"
            raise UserError(f"data.source: got {shown(self.source)}; {hint}")
        if self.source in ("voc", "coco", "folder") and self.data_dir is None:
            raise UserError(f"data.data_dir: missing, but source {self.source!r} reads a folder; pass --data-dir")
        if self.source == "hub" and self.dataset is None:
            raise UserError("data.dataset: missing, but source 'hub' reads a Hugging Face dataset; name it")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise UserError(f"data.classes: got {list(self.classes)}, expected each name once")
        if self.separator is not None and not 1 <= len(self.separator) <= 5:
            raise UserError(f"data.separator: got {self.separator!r}, expected a sign or a word, as ',' or ' and '")


@strict
@dataclass(kw_only=True)
class AugmentationConfig(Checked):
    """Training augmentation; every draw is seeded by (seed, epoch, index).

    Args:
        flip: mirror half of the images (the released program does not).
        color_jitter: range of brightness, contrast and saturation factors around 1; 0 is off.
        randaugment: number of RandAugment operations; 0 is off, the release uses 2.
        randaugment_magnitude: strength of these operations, 0-30.
        geometric: let RandAugment also shear, move and rotate. The proportions do not move with the image, so this is
            only for reproducing the release.
    """

    SECTION = "augmentation"

    flip: bool = True
    color_jitter: float = number(0.3, at_least=0)
    randaugment: int = number(0, at_least=0, limit=100)
    randaugment_magnitude: int = number(9, at_least=0, at_most=30)
    geometric: bool = False
