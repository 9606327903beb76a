"""Features of a frozen trunk, computed once for each photo and view, for the heads to be trained on.

A view is a photo at one size, mirrored or not. Its features lie in a file of their own, 16-bit numbers of all photos
one after the other, which is mapped into memory and never loaded as a whole; a byte for each photo in a second file
says that its features are there, so that a killed process goes on where it was. The files' names are hashes of
everything that their content depends on: weights, size, how photos are prepared, and the photos. Stages that share a
folder share them.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ..config import TrainingConfig
from ..data.preprocessing import Preprocessing
from ..data.schema import IGNORE_INDEX, TaggedImages
from ..files import digest, replacing
from ..labels.label_maps import LabelMaps
from ..processes import shared
from ..progress import tracked
from .crops import Cut, cut_out
from .device import use_cpu

# Photos that go through the trunk together.
GROUP = 8
# Where `feature_sizes` is left open.
FEATURE_SIZES = 3


@dataclass(frozen=True)
class View:
    """How a photo is looked at.

    Args:
        side: to which it is resized; the aspect is not kept.
        mirrored: left and right exchanged.
    """

    side: int
    mirrored: bool


def training_views(config: TrainingConfig) -> list[View]:
    """The views that a training on kept features draws from, those of `image_size` first.

    Args:
        config: with targets `"labels"`, [`drawn_sides`] are among them.
    """
    sides = dict.fromkeys([config.image_size, *drawn_sides(config)])
    return [
        View(side, mirrored) for side in sides for mirrored in ([False, True] if config.augmentation.flip else [False])
    ]


def drawn_sides(config: TrainingConfig) -> list[int]:
    """Sizes of the views that a training draws from: `image_size`, or of targets `"labels"` those that it cuts from.

    Args:
        config: there are `feature_sizes` of these, evenly from `min_scale` to `max_scale`.
    """
    if config.targets != "labels":
        return [config.image_size]
    scales = np.linspace(config.min_scale, config.max_scale, config.feature_sizes or FEATURE_SIZES)
    return [max(1, round(scale * config.image_size)) for scale in scales.tolist()]


def feature_shape(model: Any, side: int) -> tuple[int, int, int]:
    """Channels, height and width of the trunk's features of a photo of `side` x `side`, without looking at one."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.inference_mode():
        empty = type(model.base_model)(model.config).eval()
        _, channels, height, width = empty(torch.empty(1, 3, side, side)).last_hidden_state.shape
    return channels, height, width


def features_size(model: Any, num_images: int, configs: Sequence[TrainingConfig]) -> int:
    """Bytes on disk that the features of all stages take; those that they share once.

    Args:
        model: the classifier.
        num_images: photos of the training set.
        configs: of the stages.
    """
    views = dict.fromkeys(view for config in configs for view in training_views(config))
    return sum(num_images * (2 * int(np.prod(feature_shape(model, view.side))) + 1) for view in views)


class FeatureFile:
    """Features of all photos in one view, on disk.

    Args:
        folder: made if needed.
        key: of everything that the features depend on.
        shape: number of photos, channels, height, width.
    """

    def __init__(self, folder: Path, key: str, shape: tuple[int, ...]) -> None:
        self.path, self.shape = Path(folder) / f"{key}.float16", shape
        self._done = self.path.with_suffix(".done")

    def create(self) -> None:
        """Make the files, empty, unless they are there; one process calls."""
        for path, size in ((self._done, self.shape[0]), (self.path, 2 * int(np.prod(self.shape)))):
            if not path.is_file() or path.stat().st_size != size:
                with replacing(path) as temporary:
                    temporary.touch()
                    os.truncate(temporary, size)
                # Rows of a file that is new are not there, whatever the other one says.
                if path == self.path:
                    self.done[:] = 0

    @property
    def done(self) -> NDArray[np.uint8]:
        """1 for each photo whose features are there."""
        return np.memmap(self._done, np.uint8, "r+", shape=self.shape[:1])

    @property
    def rows(self) -> NDArray[np.float16]:
        """The features."""
        return np.memmap(self.path, np.float16, "r+", shape=self.shape)

    def write(self, index: Sequence[int], features: NDArray[np.float16]) -> None:
        """Keep the features of some photos; they are on the disk before they count as there."""
        rows: Any = self.rows
        rows[list(index)] = features
        rows.flush()
        done: Any = self.done
        done[list(index)] = 1
        done.flush()


def compute_features(
    model: Any, images: TaggedImages, views: Sequence[View], preprocessing: Preprocessing, folder: Path
) -> dict[View, FeatureFile]:
    """Compute what is not kept yet; all processes call, and share the work.

    Args:
        model: the classifier, whose trunk is frozen.
        images: the training set.
        views: see [`training_views`].
        preprocessing: of the photos.
        folder: of the files.

    Raises:
        ValueError: features that 16-bit numbers cannot hold.
    """
    process = PartialState(cpu=use_cpu())
    trunk = model.base_model.eval().to(process.device)
    made_from = {"weights": _trunk_digest(trunk), "images": images.manifest_hash, **asdict(preprocessing)}
    shapes = {side: feature_shape(model, side) for side in {view.side for view in views}}
    files = {
        view: FeatureFile(folder, digest({**made_from, **asdict(view)}), (len(images), *shapes[view.side]))
        for view in views
    }
    if process.is_main_process:
        for file in files.values():
            file.create()
    process.wait_for_everyone()
    groups = [range(start, min(start + GROUP, len(images))) for start in range(0, len(images), GROUP)]
    shown = process.is_main_process
    numbers = tracked(shared(len(groups), process), "features", len(groups), unit="groups of photos", shown=shown)
    for group in (groups[number] for number in numbers):
        for view, file in files.items():
            left = [index for index in group if not file.done[index]]
            if left:
                file.write(left, _look(trunk, images, left, view, preprocessing))
    process.wait_for_everyone()
    return files


@torch.inference_mode()
def _look(
    trunk: Any, images: TaggedImages, indices: Sequence[int], view: View, preprocessing: Preprocessing
) -> NDArray[np.float16]:
    photos = [_photo(images.image(index, min_side=2 * view.side), view, preprocessing) for index in indices]
    pixels = torch.stack([torch.from_numpy(np.array(photo)).permute(2, 0, 1) for photo in photos])
    features = trunk(preprocessing(pixels).to(trunk.device)).last_hidden_state.half().cpu()
    if not features.isfinite().all():
        names = images.image_ids
        raise ValueError(
            f"features of {names[indices[0]]!r} to {names[indices[-1]]!r}: not finite, or beyond 16-bit numbers; "
            "train the trunk, or choose another one"
        )
    return features.numpy()


def _photo(image: Image.Image, view: View, preprocessing: Preprocessing) -> Image.Image:
    resized = image.resize((view.side, view.side), preprocessing.resample)
    return ImageOps.mirror(resized) if view.mirrored else resized


def _trunk_digest(trunk: Any) -> str:
    found = hashlib.sha256()
    for name, value in sorted(trunk.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


class FeatureDataset(Dataset):
    """Training samples of a classifier with a frozen trunk: features instead of pixels; mirrored as pixels would be.

    Colours are those of the photos: what is kept cannot be jittered.

    Args:
        images: the training set.
        files: of every view of [`training_views`].
        config: size, scales and whether samples are mirrored.
        seed: of the draws.
        proportions: of shape `(n, C)`; `None` leaves them out of the samples.
        label_maps: with targets `"labels"`, of the photos.
    """

    def __init__(
        self,
        images: TaggedImages,
        files: dict[View, FeatureFile],
        config: TrainingConfig,
        seed: int,
        proportions: NDArray[np.float64] | None = None,
        label_maps: LabelMaps | None = None,
    ) -> None:
        self.config, self.seed, self.epoch = config, seed, 0
        self.label_maps = label_maps
        self._ids = images.image_ids
        self._rows = {view: file.rows for view, file in files.items()}
        self._sides = drawn_sides(config)
        self._labels = torch.from_numpy(images.label_matrix())
        self._proportions = None if proportions is None else torch.from_numpy(np.asarray(proportions, np.float64))

    def set_epoch(self, epoch: int) -> None:
        """Draw other views; call before the epoch's iterator, and so its workers, are made."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """One sample.

        Returns:
            `features` (`float32`, `(D, h, w)`), `labels` (`float32`, `(C,)`), `index`; with proportions `proportions`
            (`float64`, `(C,)`); with label maps also `label_maps` (`int64`, some pixels for each cell).
        """
        generator = np.random.default_rng([self.seed, self.epoch, index])
        sample: dict[str, Tensor | int] = {"labels": self._labels[index], "index": index}
        if self.label_maps is not None:
            return sample | dict(self._cut(index, self.label_maps, generator))
        mirrored = self.config.augmentation.flip and bool(generator.random() < 0.5)
        kept = self._rows[View(self.config.image_size, mirrored)][index]
        sample["features"] = torch.from_numpy(np.array(kept, np.float32))
        if self._proportions is not None:
            sample["proportions"] = self._proportions[index]
        return sample

    def _cut(self, index: int, label_maps: LabelMaps, generator: np.random.Generator) -> Iterator[tuple[str, Tensor]]:
        """Cut cells out of a larger or smaller view, and the label map alike."""
        first = self._rows[View(self.config.image_size, False)]
        size = first.shape[-1]
        side = self._sides[int(generator.integers(len(self._sides)))]
        mirrored = self.config.augmentation.flip and bool(generator.random() < 0.5)
        kept = self._rows[View(side, mirrored)][index]
        rows, columns = (Cut.draw(cells, size, generator) for cells in kept.shape[1:])
        features = torch.zeros(len(kept), size, size)
        inner = kept[:, rows.source : rows.source + rows.length, columns.source : columns.source + columns.length]
        into = (slice(rows.target, rows.target + rows.length), slice(columns.target, columns.target + columns.length))
        features[:, *into] = torch.from_numpy(np.array(inner, np.float32))
        # Whole pixels for each cell, so that both are cut at the same place.
        pixels = max(1, round(self.config.image_size / size))
        label_map = Image.fromarray(label_maps.read(self._ids[index]))
        label_map = ImageOps.mirror(label_map) if mirrored else label_map
        scaled = (kept.shape[2] * pixels, kept.shape[1] * pixels)
        cut = cut_out(label_map, scaled, columns.times(pixels), rows.times(pixels), Image.Resampling.NEAREST)
        labels = torch.full((size * pixels, size * pixels), IGNORE_INDEX)
        labels[tuple(slice(part.start * pixels, part.stop * pixels) for part in into)] = torch.from_numpy(
            np.array(cut)
        ).long()
        counts = torch.bincount(labels.flatten(), minlength=IGNORE_INDEX + 1).double()
        known = (labels.numel() - counts[IGNORE_INDEX]).clamp(min=1)
        yield "features", features
        yield "label_maps", labels
        yield "proportions", counts[1 : 1 + len(self._labels[index])] / known
