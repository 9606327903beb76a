"""From images to label stores: in order, resumable, while a dense CRF works on the images before."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from ..config import LabellingConfig, PredictionConfig
from ..data.decoding import UnreadableError
from ..data.schema import TaggedImages
from ..labels.store import GROUP, NOTHING_SURE, LabelStore
from ..postprocess.crf_pool import CrfPool
from ..processes import Share
from ..progress import Bar, finished_before

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class LabelSummary:
    """What [`classifier.label_images`] or [`segmenter.predict_images`] left on disk.

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
class LabelledImage:
    """The label maps of an image, which may still be waiting for the CRF.

    Args:
        label_maps: one function per store that returns the label map, `(H, W)` uint8, or `None` if there is none.
        describe: what a store notes of a label map besides.
    """

    label_maps: Sequence[Callable[[], np.ndarray | None]]
    describe: Callable[[np.ndarray], Mapping[str, Any]]


# Labels readable images, given their positions in the list; lazily, so that the CRF's queue stays short.
Labeller = Callable[[Sequence[int], Sequence[Image.Image], CrfPool | None], Iterable[LabelledImage]]


def write_stores(
    images: TaggedImages,
    label: Labeller,
    config: LabellingConfig | PredictionConfig,
    *,
    stores: Mapping[Path, Mapping[str, Any]],
    key: str,
    share: Share,
    strict: bool,
    group_size: int,
    what: str,
    device: "torch.device | str" = "cpu",
) -> LabelSummary:
    """Label images and write the label maps into stores.

    Killed at any moment and called again, it ends with the same bytes: the list is cut into fixed groups of
    consecutive images, a group with anything missing is labelled again as a whole, and label maps and records are
    written in the order of the list. With several processes, group `g` belongs to process `g % world`.

    Args:
        images: to label.
        label: makes the label maps of a group.
        config: its CRF runs meanwhile; see [`CrfPool`].
        stores: folders, in the order of the label maps, and what their descriptions say; with a CRF, the last store's
            label maps are after it.
        key: of everything the label maps depend on.
        share: this process's.
        strict: raise at an unreadable image instead of skipping and listing it.
        group_size: images that `label` gets at a time.
        what: is done, for the progress [`Bar`].
        device: where the networks are, and with torch the CRF.

    Raises:
        ValueError: the stores were made from something else, an unreadable image if `strict`, or see `label`.
        OSError: a store cannot be written.
        RuntimeError: a CRF process died.
    """
    last = list(stores)[-1]
    opened = [
        LabelStore.create(
            directory,
            images.class_names,
            key=key,
            num_images=len(images),
            details={**details, "crf": config.crf is not None and directory == last},
            rank=share.rank,
            group=GROUP,
        )
        for directory, details in stores.items()
    ]
    own = share.of(groups_of(len(images), group_size))
    todo, num_labelled = _groups_to_do(images.image_ids, opened, own), 0
    if not todo:
        finished_before(what)
    else:
        total, waiting = (sum(map(len, groups)) for groups in (own, todo))
        progress = Bar(what, total, total - waiting, shown=share.rank == 0)
        pool = CrfPool(config.crf, config.crf_workers, device) if config.crf else contextlib.nullcontext()
        with progress, pool as crf, contextlib.ExitStack() as flushed:
            # Of what ends with an error, everything that was made is kept.
            for store in opened:
                flushed.callback(store.flush)
            # What may wait in memory, so that the CRF has work while the next group is computed.
            room = group_size + crf.room if crf else 0
            for image_id, labelled in _delayed(_label_groups(images, todo, config.threads, strict, label, crf), room):
                _write(image_id, labelled, opened)
                progress.update()
                num_labelled += not isinstance(labelled, str)
    completed = [store.complete or store.mark_complete() for store in opened]
    directories = tuple(store.directory for store in opened)
    return LabelSummary(directories, len(images), num_labelled, opened[0].skipped, all(completed))


def _groups_to_do(ids: Sequence[str], stores: Sequence[LabelStore], groups: Sequence[range]) -> list[range]:
    """Of groups of consecutive images those of which any is missing in any store."""
    if all(store.complete for store in stores):
        return []
    done = set.intersection(*(store.done_ids() for store in stores))
    return [group for group in groups if not done.issuperset(ids[i] for i in group)]


def groups_of(count: int, size: int) -> list[range]:
    """Fixed groups of consecutive images."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _label_groups(
    images: TaggedImages, groups: Sequence[range], threads: int, strict: bool, label: Labeller, crf: CrfPool | None
) -> Iterator[tuple[str, LabelledImage | str]]:
    """Image ids with what became of the image: label maps, or why it is skipped."""
    ids = images.image_ids
    for group, (readable, skipped) in zip(groups, _read_ahead(images, groups, threads, strict), strict=True):
        labelled = iter(label(list(readable), list(readable.values()), crf))
        for i in group:
            yield ids[i], skipped[i] if i in skipped else next(labelled)


def _read_ahead(
    images: TaggedImages, groups: Iterable[range], threads: int, strict: bool
) -> Iterator[tuple[dict[int, Image.Image], dict[int, str]]]:
    """[`read_images`] of each group in turn, while the next is decoded: a group, or an image for each thread."""
    ahead: deque[list[Future]] = deque()
    waiting = iter(groups)
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                while sum(map(len, ahead)) < threads or len(ahead) < 2:
                    if (group := next(waiting, None)) is None:
                        break
                    ahead.append([pool.submit(read_images, images, range(i, i + 1), strict) for i in group])
                if not ahead:
                    return
                answers = [future.result() for future in ahead.popleft()]
                readable, skipped = (
                    {i: value for part in parts for i, value in part.items()} for parts in zip(*answers, strict=True)
                )
                yield readable, skipped
        finally:
            pool.shutdown(cancel_futures=True)


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


def _delayed(items: Iterable[T], room: int) -> Iterator[T]:
    """The same items in the same order, each held back until `room` more have been made."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > room:
            yield waiting.popleft()
    yield from waiting


def _write(image_id: str, labelled: LabelledImage | str, stores: Sequence[LabelStore]) -> None:
    if isinstance(labelled, str):
        for store in stores:
            store.skip(image_id, labelled)
        return
    for store, result in zip(stores, labelled.label_maps, strict=True):
        if image_id in store:
            continue
        label_map = result()
        if label_map is None:
            store.skip(image_id, NOTHING_SURE)
        else:
            store.write(image_id, label_map, labelled.describe(label_map))
