"""A checkpoint and images in, stores of label maps out."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..config import LabellingConfig, to_mapping
from ..data.decoding import UnreadableError
from ..data.schema import TaggedImages
from ..data.transforms import IMAGENET, Normalization
from ..labels.store import LabelStore
from ..models.configuration_checks import label_names
from ..models.modeling_spatial_bce import SpatialBceForImageClassification
from ..postprocess.crf import CrfPool
from ..postprocess.methods import Method, RuleMethod
from ..postprocess.rules import SOFT_RANGE, ClassMaps
from .views import class_maps

T = TypeVar("T")


@dataclass(frozen=True)
class LabelSummary:
    """What [`label_images`] or [`segmenter.predict_images`] left on disk.

    Args:
        directories: of the stores, in the method's order; see [`variants`].
        num_images: in the list.
        num_labelled: of them, by this call.
        skipped: why each image without a label map has none.
        complete: every image is labelled or skipped. With several processes, only the last to finish sees it.
    """

    directories: tuple[Path, ...]
    num_images: int
    num_labelled: int
    skipped: dict[str, str]
    complete: bool


@dataclass(frozen=True)
class _Item:
    """An image that is skipped, or its label maps to come and the description."""

    image_id: str
    skipped: str | None = None
    label_maps: Sequence[Callable[[], np.ndarray | None]] = ()
    record: dict[str, Any] = field(default_factory=dict)


def label_images(
    model: SpatialBceForImageClassification,
    images: TaggedImages,
    config: LabellingConfig,
    *,
    output_dir: Path,
    key: str,
    checkpoint: str | None = None,
    method: Method | None = None,
    strict: bool = False,
    rank: int = 0,
    world: int = 1,
    normalization: Normalization = IMAGENET,
) -> LabelSummary:
    """Label every image: views, threshold rule or another method, and in worker processes the dense CRF.

    Killed at any moment and called again, it ends with the same bytes. Results depend, in their last bits, on which
    images share a batch; so the list is cut into fixed groups of `config.batch_size` consecutive images, a group with
    anything missing is computed again as a whole, and label maps and records are written in the order of the list.
    With several processes, group `g` belongs to process `g % world`.

    Args:
        model: a trained classifier, on its device. Left in evaluation mode and channels-last memory format.
        images: to label; their tags are the known classes unless `config.known_classes` is `"predicted"`. An image
            without known classes becomes all background.
        config: views, rule, CRF.
        output_dir: gets the method's stores.
        key: of everything the label maps depend on: checkpoint, options, `images.manifest_hash`.
        checkpoint: hash of the model's weights, kept with the label maps.
        method: instead of `config.rule`.
        strict: raise at an unreadable image instead of skipping and listing it.
        rank: of this process, from 0.
        world: number of processes.
        normalization: of the pixels; the image processor's.

    Returns:
        [`LabelSummary`].

    Raises:
        ValueError: the model's classes are not the images', the stores were made from something else, an unreadable
            image if `strict`, or class maps that are not finite.
        OSError: a store cannot be written.
        RuntimeError: a CRF process died.
    """
    chosen: Method = method or RuleMethod(config)
    _check_classes(model, images.class_names)
    if not 0 <= rank < world:
        raise ValueError(f"rank: got {rank}, expected 0 to {world - 1} (world {world})")
    stores = _create_stores(Path(output_dir), images, config, chosen, key, rank, checkpoint)
    groups = groups_to_do(images.image_ids, stores, config.batch_size, rank, world)
    num_labelled = 0
    if groups:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
        progress = tqdm(total=sum(map(len, groups)), desc=f"label ({chosen.name})", unit="image", disable=None)
        pool = CrfPool(config.crf, config.crf_workers) if config.crf else contextlib.nullcontext()
        views = partial(class_maps, model, config=config, normalization=normalization)
        with progress, pool as crf:
            items = _label_groups(images, groups, strict, views, partial(_label, method=chosen, crf=crf))
            # What may wait in memory: enough to keep the workers busy during the next group's views.
            room = config.batch_size + 2 * config.crf_workers if crf else 0
            for item in delayed(items, room):
                _write(item, stores)
                progress.update()
                num_labelled += item.skipped is None
    return finish(stores, len(images), num_labelled)


def _check_classes(model: SpatialBceForImageClassification, class_names: tuple[str, ...]) -> None:
    names = label_names(model.config)
    # A model that was made from a number of classes alone has names like these.
    unnamed = tuple(f"LABEL_{i}" for i in range(len(names)))
    if len(names) != len(class_names) or names not in (unnamed, tuple(class_names)):
        raise ValueError(
            f"the model's classes are {list(names)}, the images' {list(class_names)}; expected the same names in the "
            "same order (data.classes sets the images')"
        )


def _create_stores(
    output_dir: Path,
    images: TaggedImages,
    config: LabellingConfig,
    method: Method,
    key: str,
    rank: int,
    checkpoint: str | None,
) -> list[LabelStore]:
    details = {"method": method.name, "config": {**to_mapping(config), **method.options}, "checkpoint": checkpoint}
    return [
        LabelStore.create(
            output_dir / name,
            images.class_names,
            key=key,
            num_images=len(images),
            details={**details, "crf": config.crf is not None and name == method.stores[-1]},
            rank=rank,
        )
        for name in method.stores
    ]


def groups_to_do(ids: Sequence[str], stores: Sequence[LabelStore], size: int, rank: int, world: int) -> list[range]:
    """This process's groups of consecutive images of which any is missing in any store."""
    if all(store.complete for store in stores):
        return []
    done = set.intersection(*(store.done_ids() for store in stores))
    groups = [range(start, min(start + size, len(ids))) for start in range(0, len(ids), size)]
    return [group for group in groups[rank::world] if not done.issuperset(ids[i] for i in group)]


def finish(stores: Sequence[LabelStore], num_images: int, num_labelled: int) -> LabelSummary:
    """Mark the stores complete if they are, and sum up."""
    completed = [store.complete or store.mark_complete() for store in stores]
    return LabelSummary(
        directories=tuple(store.directory for store in stores),
        num_images=num_images,
        num_labelled=num_labelled,
        skipped=stores[0].skipped,
        complete=all(completed),
    )


def _label_groups(
    images: TaggedImages,
    groups: Sequence[range],
    strict: bool,
    views: Callable[..., list[ClassMaps]],
    label: Callable[[np.ndarray, ClassMaps], _Item],
) -> Iterator[_Item]:
    ids, labels = images.image_ids, images.label_matrix()
    for group in groups:
        readable, skipped = read_images(images, group, strict)
        used = list(readable)
        maps = views(list(readable.values()), labels[used], image_ids=[ids[i] for i in used])
        maps_of = dict(zip(used, maps, strict=True))
        for i in group:
            if i in skipped:
                yield _Item(ids[i], skipped=skipped[i])
            else:
                yield label(np.asarray(readable[i]), maps_of[i])


def read_images(images: TaggedImages, group: range, strict: bool) -> tuple[dict[int, Image.Image], dict[int, str]]:
    """The readable images of a group, and why the others are not; raises at the first of these if `strict`."""
    readable, skipped = {}, {}
    for i in group:
        try:
            readable[i] = images.image(i)
        except UnreadableError as error:
            if strict:
                raise
            skipped[i] = str(error)
    return readable, skipped


def _label(image: np.ndarray, maps: ClassMaps, method: Method, crf: CrfPool | None) -> _Item:
    answer = method(image, maps, crf)
    probabilities = maps.probabilities
    soft = (probabilities > SOFT_RANGE[0]) & (probabilities < SOFT_RANGE[1])
    record = {
        "classes": maps.classes.tolist(),
        "thresholds": answer.thresholds.tolist(),
        "soft_share": soft.mean(axis=(1, 2)).tolist(),
        "mean_probability": probabilities.mean(axis=(1, 2), dtype=np.float64).tolist(),
    }
    return _Item(maps.image_id, label_maps=answer.label_maps, record=record)


def delayed(items: Iterable[T], room: int) -> Iterator[T]:
    """The same items in the same order, each held back until `room` more have been made."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > room:
            yield waiting.popleft()
    yield from waiting


def _write(item: _Item, stores: Sequence[LabelStore]) -> None:
    if item.skipped is not None:
        for store in stores:
            store.skip(item.image_id, item.skipped)
        return
    for store, result in zip(stores, item.label_maps, strict=True):
        if item.image_id in store:
            continue
        label_map = result()
        if label_map is None:
            store.skip(item.image_id, "nothing is sure")
        else:
            shares = [float((label_map == c + 1).mean()) for c in item.record["classes"]]
            store.write(item.image_id, label_map, {**item.record, "proportions": shares})
