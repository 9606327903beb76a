"""The readers of files that a stranger may hand over, each with valid files to spoil and a way to read them.

`test_readers.py` and `scripts/fuzz.py` go through the same table. A case is a number: it decides what is done to which
file, so that it can be repeated.
"""

import functools
import json
import logging
import math
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import transformers
import yaml
from datasets import ClassLabel, Dataset, DatasetInfo, Features, List, Value
from datasets import Image as ImageFeature
from mutations import NUMBERS, TEXTS, mutated, odd_value, written
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from sbce_hf.cli.mistakes import told_in_one_line
from sbce_hf.config import (
    DataConfig,
    RunConfig,
    SaliencyConfig,
    SegmenterConfig,
    load_recipe,
    merge,
    parse_override,
    to_mapping,
)
from sbce_hf.data import load_images
from sbce_hf.data.decoding import decode_image, decode_indices, encode_png
from sbce_hf.data.lists import images_from_lists
from sbce_hf.data.photos import load_photos
from sbce_hf.data.saliency_maps import SaliencyMaps, check_saliency_maps
from sbce_hf.data.schema import TaggedImages
from sbce_hf.demo.explain import load_checkpoint
from sbce_hf.files import write_json
from sbce_hf.hub.label_info import read_info
from sbce_hf.inference.checkpoints import load_boundary_network, load_classifier, load_segmenter
from sbce_hf.labels import hub_store
from sbce_hf.labels.label_maps import check_label_maps
from sbce_hf.labels.proportions import ProportionTable
from sbce_hf.labels.store import LabelStore
from sbce_hf.models.configuration_deeplab import DeepLabConfig
from sbce_hf.models.configuration_irn import IrnConfig
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.image_processing_deeplab import DeepLabImageProcessor
from sbce_hf.models.image_processing_spatial_bce import SpatialBceImageProcessor
from sbce_hf.models.modeling_deeplab import DeepLabForSemanticSegmentation
from sbce_hf.models.modeling_irn import IrnModel
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.runs import report
from sbce_hf.runs.bench import load_training_images
from sbce_hf.runs.guard import kept_classes
from sbce_hf.training.classifier import create_classifier
from sbce_hf.training.folder import Progress, StageFolder, read_metrics
from sbce_hf.training.health import ClassHealth
from sbce_hf.training.segmenter import create_segmenter

# A case that takes longer hangs, in seconds.
PATIENCE = 10.0
# More than anybody reads.
MAX_LINE = 2500


class Hang(BaseException):
    """A case took too long. Not an `Exception`, which a reader would take for a damaged file."""


class Defect(AssertionError):
    """A reader neither read a valid value nor told in one line what is wrong."""


@dataclass(frozen=True)
class Reader:
    """A reader and what it reads.

    Args:
        build: writes valid files into a folder.
        read: reads them, and checks that what came out is valid.
        spoiled: patterns of the files that are spoiled.
        names: one of these is in every message.
        spoil: another way to spoil than changing a file's bytes.
        cases: in a normal run of the tests.
    """

    build: Callable[[Path], object]
    read: Callable[[Path], object]
    spoiled: Sequence[str] = ()
    names: Sequence[str] = ("data",)
    spoil: Callable[[Path, Random], object] | None = None
    cases: int = 250
    _cache: dict[Path, dict[Path, bytes]] = field(default_factory=dict, repr=False)

    def prepare(self, folder: Path) -> None:
        """Write the valid files, and read them."""
        self.build(folder)
        files = sorted({file for pattern in self.spoiled for file in folder.glob(pattern)})
        assert files or self.spoil, "nothing to spoil"
        self._cache[folder] = {file: file.read_bytes() for file in files}
        if self.spoil is None:
            self.read(folder)

    def case(self, folder: Path, random: Random) -> str:
        """Spoil, read, and make whole again.

        Returns:
            `"read"` or `"refused"`.

        Raises:
            Hang: it took longer than [`PATIENCE`].
            Exception: whatever the reader raised that is not told in one line; or a [`Defect`].
        """
        if self.spoil is not None:
            self.spoil(folder, random)
            return self._outcome(folder)
        files = self._cache[folder]
        file = random.choice(list(files))
        file.write_bytes(mutated(files[file], file.name, random))
        try:
            return self._outcome(folder)
        finally:
            file.write_bytes(files[file])

    def _outcome(self, folder: Path) -> str:
        try:
            with _patience():
                self.read(folder)
        except Exception as error:
            line = told_in_one_line(error)
            if line is None or isinstance(error, MemoryError):
                raise
            if "\n" in line or len(line) > MAX_LINE:
                raise Defect(f"a message of {len(line)} characters: {line[:300]!r}") from error
            if not any(name in line for name in self.names):
                raise Defect(f"a message that names none of {self.names}: {line!r}") from error
            return "refused"
        return "read"


@contextmanager
def _patience() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang(f"longer than {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Data sets -----------------------------------------------------------------------------------------------------------


def png(seed: int, size: tuple[int, int] = (20, 16), palette: bool = False) -> bytes:
    """A photo, or an index PNG of 0 to 2."""
    generator = np.random.default_rng(seed)
    shape = size[::-1]
    image = Image.fromarray(generator.integers(0, 3 if palette else 255, shape if palette else (*shape, 3), np.uint8))
    if palette:
        image.putpalette(list(range(256)) * 3)
    return encode_png(image)


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def check_images(images: TaggedImages) -> None:
    """What every later step relies on."""
    assert len(images) > 0 and len(set(images.image_ids)) == len(images)
    assert images.num_classes > 0 and all(name.strip() for name in images.class_names)
    for index, present in enumerate(images.dataset["labels"]):
        assert list(present) == sorted(set(present)) and all(0 <= label < images.num_classes for label in present)
        assert min(images.image(index).size) > 0
    masked = images.with_masks()
    for index in range(len(masked)):
        mask = masked.mask(index)
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {*range(images.num_classes + 1), 255}


def photos(folder: Path) -> None:
    for index in range(3):
        put(folder / "images" / f"{index}.png", png(index))
        put(folder / "masks" / f"{index}.png", png(index, palette=True))


def folder_with_csv(folder: Path) -> None:
    photos(folder)
    put(folder / "tags.csv", 'file,tags,split\n0.png,cat;dog,train\n"1.png",cat,train\nimages/2.png,dog,val\n')


def folder_with_jsonl(folder: Path) -> None:
    photos(folder)
    rows = [{"file_name": f"{i}.png", "tags": ["cat", "dog"][: i + 1], "split": "train"} for i in range(3)]
    put(folder / "metadata.jsonl", "\n".join(map(json.dumps, rows)) + "\n")


def folder_with_columns(folder: Path) -> None:
    photos(folder)
    put(folder / "_classes.csv", "filename;cat;dog\n0.png;1;0\n1.png;1;1\n2.png;0;1\n")


def folder_with_parquet(folder: Path) -> None:
    photos(folder)
    table = pa.table({"file_name": ["0.png", "1.png", "2.png"], "tags": [["cat"], ["cat", "dog"], ["dog"]]})
    pq.write_table(table, folder / "metadata.parquet")


def folder_with_categories(folder: Path) -> None:
    photos(folder)
    images = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in range(3)]
    found = [{"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [0, 0, 4, 4]} for i in range(3)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    put(
        folder / "_annotations.coco.json",
        json.dumps({"images": images, "annotations": found, "categories": categories}),
    )


def folder_with_tasks(folder: Path) -> None:
    photos(folder)
    answers = [[{"type": "choices", "value": {"choices": tags}}] for tags in (["cat"], ["cat", "dog"], ["dog"])]
    tasks = [
        {"id": i, "data": {"image": f"/data/upload/1/0a1b2c3d-{i}.png"}, "annotations": [{"result": answer}]}
        for i, answer in enumerate(answers)
    ]
    put(folder / "export.json", json.dumps(tasks))


def folder_with_images(folder: Path) -> None:
    photos(folder)
    images = [f'<image id="{i}" name="{i}.png"><tag label="{name}"/></image>' for i, name in enumerate(("cat", "dog"))]
    put(folder / "annotations.xml", f"<annotations>{''.join(images)}</annotations>")


def read_source(source: str, split: str = "train", **options: Any) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        place = {"dataset": str(folder / "saved")} if source == "hub" else {"data_dir": str(folder)}
        check_images(
            load_images(DataConfig(source=source, score_split=split, train_split=split, **place, **options), split)
        )

    return read


XML = (
    "<annotation><object><name>{}</name><part><name>head</name></part></object>"
    "<object><name>cat</name></object></annotation>"
)


def voc(folder: Path) -> None:
    for index, name in enumerate(("dog", "cat")):
        put(folder / "JPEGImages" / f"{index}.jpg", png(index))
        put(folder / "SegmentationClass" / f"{index}.png", png(index, palette=True))
        put(folder / "Annotations" / f"{index}.xml", XML.format(name))
    put(folder / "ImageSets" / "Segmentation" / "train.txt", "0\n/JPEGImages/1.jpg /SegmentationClass/1.png\n")


def voc_with_table(folder: Path) -> None:
    voc(folder)
    shutil.rmtree(folder / "Annotations")
    put(folder / "image_labels.json", json.dumps({"0": ["cat"], "1": ["dog", "cat"]}))


def coco(folder: Path) -> None:
    for index in range(2):
        put(folder / "train2014" / f"{index}.jpg", png(index))
    common = {"iscrowd": 0, "area": 9.0, "bbox": [0, 0, 3, 3]}
    runs = {"size": [16, 20], "counts": [10, 300, 10]}
    outlines = ([[0, 0, 8.5, 0, 8, 8]], runs, {"size": [16, 20], "counts": "0P:"}, [[1, 1, 5, 1, 5, 5], [0, 0, 2, 2]])
    annotations = [
        {"id": i, "image_id": i % 2, "category_id": 17 + i % 2, "segmentation": outline} | common
        for i, outline in enumerate(outlines)
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 16, "width": 20} for i in range(2)]
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    put(folder / "annotations" / "instances_train2014.json", json.dumps(content))


def saved_dataset(folder: Path) -> None:
    rows = {
        "image_id": ["a", "b"],
        "image": [{"bytes": png(i), "path": None} for i in range(2)],
        "labels": [[0], [0, 1]],
        "mask": [{"bytes": png(i, palette=True), "path": None} for i in range(2)],
    }
    features = Features(
        image_id=Value("string"),
        image=ImageFeature(),
        labels=List(ClassLabel(names=["cat", "dog"])),
        mask=ImageFeature(),
    )
    Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "saved"))


def odd_rows(folder: Path, random: Random) -> None:
    """A dataset of other columns: each of any type, with any values that it can hold."""
    odd_pictures = (
        None,
        {"bytes": b"", "path": None},
        {"bytes": None, "path": "x.png"},
        {"bytes": None, "path": None},
    )
    odd_pictures += ({"bytes": png(0)[:50], "path": None}, {"bytes": png(1, palette=True), "path": "../x.png"})

    def picture(palette: bool = False) -> Any:
        if random.randrange(8):
            return {"bytes": png(0, palette=palette), "path": None}
        return random.choice((*odd_pictures, {"bytes": None, "path": text()}))

    names = iter("abcdefgh")
    text = lambda: random.choice(TEXTS).replace("\ud800", "")  # noqa: E731
    number = lambda: random.choice([n for n in NUMBERS if isinstance(n, float)])  # noqa: E731
    kinds: list[tuple[Any, Callable[[], Any]]] = [
        (ImageFeature(), picture),
        (List(ClassLabel(names=["cat", "dog"])), lambda: random.choice(([], [0], [1, 0], [0, 0], [-1], None))),
        (ClassLabel(names=["cat", "dog"]), lambda: random.choice((0, 1, -1, None))),
        (ClassLabel(names=["cat", f"x{text()}"]), lambda: random.choice((0, 1))),
        (Value("string"), text),
        (List(Value("string")), lambda: [text() for _ in range(random.randrange(3))]),
        (List(Value("float64")), lambda: random.choice(([0.0, 1.0], [1.0], [number(), 1.0], None))),
        (List(Value("int64")), lambda: random.choice(([0, 1], [1, 1], [2, -1], [], None))),
        (Value("float64"), number),
        (Value("bool"), lambda: random.choice((True, False, None))),
        (List(List(Value("int64"))), lambda: [[0, 1]]),
        ({"a": Value("string")}, lambda: {"a": text()}),
        (Value("binary"), lambda: random.choice((b"", b"\xff", png(0)))),
    ]
    usual: dict[str, tuple[Any, Callable[[], Any]]] = {
        "image_id": (Value("string"), lambda: next(names) if random.randrange(8) else text()),
        "image": (ImageFeature(), picture),
        "labels": (kinds[1][0], lambda: [0, 1]) if random.randrange(2) else kinds[random.choice((1, 2, 5))],
        "mask": (ImageFeature(), lambda: picture(palette=True)),
    }
    chosen = {name: usual[name] if random.randrange(8) else random.choice(kinds) for name in usual}
    left_out = random.choice((*[None] * 6, "mask", *chosen))
    chosen = {name: kind for name, kind in chosen.items() if name != left_out}
    count = random.choice((0, 1, 2, 2, 2, 2))
    features = Features({name: kind for name, (kind, _) in chosen.items()})
    table = pa.Table.from_pydict(
        {name: [make() for _ in range(count)] for name, (_, make) in chosen.items()}, features.arrow_schema
    )
    # By hand: `save_to_disk` would open the files that rows name.
    shutil.rmtree(folder / "saved", ignore_errors=True)
    (folder / "saved").mkdir()
    with pa.ipc.new_stream(folder / "saved" / "data.arrow", table.schema) as stream:
        stream.write_table(table)
    DatasetInfo(features=features).write_to_directory(str(folder / "saved"))
    state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "0", "_split": None}
    state |= dict.fromkeys(("_format_columns", "_format_type")) | {"_format_kwargs": {}, "_output_all_columns": False}
    put(folder / "saved" / "state.json", json.dumps(state))


# Recipes -------------------------------------------------------------------------------------------------------------


# Runs ----------------------------------------------------------------------------------------------------------------

_SETTINGS = {"name": "tiny", "seed": 0, "images": 4, "training": {"lr": 0.1, "epochs": 2}, "inputs": {}}


def run_notes(folder: Path) -> None:
    write_json(folder / "guard.json", {"before": "bce", "classes": {"cat": "flooded"}, "all": True})
    write_json(folder / "figures" / "drawn.json", {"figures/sheet.png": "0123", "figures/curves.png": "4567"})
    write_json(folder / "images.json", {"manifest_hash": "0123", "images": {"0": "45", "1": "67"}})
    write_json(folder / "failure.json", {"verdict": "the loss is nan", "settings": {}})
    stage = StageFolder(folder / "stage", _SETTINGS)
    stage.start_from(0)
    for iteration in (2, 4):
        stage.append_metrics({"iteration": iteration, "loss": 0.5, "mean_p/cat": math.nan})
    stage.checkpoint_target(4).mkdir(parents=True)
    stage.finish_checkpoint(Progress(4, 1.5, 1, ClassHealth(["cat"]).state()), keep=1)


def read_run_notes(folder: Path) -> None:
    kept_classes(folder)
    report._Pictures(folder).draw("figures/sheet.png", {}, lambda path: path.write_bytes(b"drawn"))
    (folder / "figures" / "sheet.png").unlink()
    with patch("sbce_hf.runs.bench.load_images", lambda *_: images_from_lists([Image.new("RGB", (2, 2))], [["cat"]])):
        load_training_images(RunConfig(data=DataConfig(source="shapes")), folder)
    assert all(isinstance(line["iteration"], int) for line in read_metrics(folder / "stage" / "metrics.jsonl"))
    StageFolder(folder, _SETTINGS).failure()
    found = StageFolder(folder / "stage", _SETTINGS).latest_checkpoint()
    assert found is not None and found[1].iteration > 0


def recipe(folder: Path) -> None:
    # All that a recipe may say.
    values = to_mapping(load_recipe("voc-animals", {"data": {"data_dir": "photos"}})) | {
        "irn": {"training": {"epochs": 1}},
        "saliency": {"maps": "maps"},
    }
    put(folder / "own.yaml", yaml.safe_dump(values, sort_keys=False))
    put(
        folder / "short.yaml",
        "bce: &stage {epochs: 2, lr: 1e-3}\nspatial: {<<: *stage}\nmodel: {trunk: test_resnet}\n",
    )


def check_config(config: RunConfig) -> None:
    json.dumps(to_mapping(config), allow_nan=False)
    # The rest of `model` is only known to the model.
    if config.model.get("trunk") == "test_resnet":
        create_classifier(config.model, ["cat"], "random", 0)


def read_recipes(folder: Path) -> None:
    for file in ("own.yaml", "short.yaml"):
        check_config(load_recipe(str(folder / file)))


def odd_options(folder: Path, random: Random) -> None:
    keys = [
        ".".join(path) for path in _paths(to_mapping(load_recipe("voc-animals", {"data": {"data_dir": "photos"}})))
    ]
    keys += [f"model.{name}" for name in SpatialBceConfig.__annotations__ if name != "model_type"] * 2
    key = random.choice(keys + [random.choice(TEXTS), f"{random.choice(keys)}.{random.choice(TEXTS)}"])
    odd = (
        random.choice(TEXTS),
        str(random.choice(NUMBERS)),
        json.dumps(odd_value(random)),
        yaml.safe_dump(odd_value(random)),
    )
    option = random.choice((f"{key}={random.choice(odd)}",) * 8 + (random.choice(TEXTS),))
    put(folder / "option", option.encode(errors="surrogatepass"))


def _paths(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from _paths(value, (*path, key))


def read_option(folder: Path) -> None:
    text = (folder / "option").read_bytes().decode(errors="surrogatepass")
    small = {"model": {"trunk": "test_resnet"}}
    check_config(load_recipe("quickstart", merge(small, parse_override(text))))


# Label maps ----------------------------------------------------------------------------------------------------------


def store_of(folder: Path) -> LabelStore:
    store = LabelStore.create(
        folder / "store", ("cat", "dog"), key="k", num_images=4, details={"config": {"note": "n"}}
    )
    for index in range(3):
        label_map = np.asarray(Image.open(put(folder / "x.png", png(index, palette=True))))
        shares = {"classes": [0, 1], "thresholds": [0.5, None], "proportions": [0.25, 0.5], "soft_share": [0.1, 0.2]}
        store.write(str(index), label_map, shares)
    store.skip("3", "unreadable")
    store.mark_complete()
    return store


def store_with_photos(folder: Path) -> None:
    folder_with_csv(folder)
    store_of(folder)


@functools.cache
def images_of(folder: Path) -> TaggedImages:
    return load_images(DataConfig(data_dir=str(folder), score_split=None), "train")


def read_store(folder: Path) -> None:
    store = LabelStore(folder / "store")
    ids, table = store.proportions()
    assert table.shape == (len(ids), len(store.class_names)) and ((table >= 0) & (table <= 1)).all()
    json.dumps([store.skipped, store.note, sorted(store.undecided), sorted(store.unreadable), store.complete])
    for image_id in store.done_ids():
        store.row(image_id)
        values = store.read(image_id)
        assert values.dtype == np.uint8 and values.ndim == 2
    assert len(store.to_dataset()) == len(ids)
    # The other way in: an interrupted one that is continued.
    LabelStore.create(folder / "store", ("cat", "dog"), key="k", num_images=4)
    if set(images_of(folder).image_ids) <= store.done_ids():
        check_label_maps(images_of(folder), store)


def read_store_maps(folder: Path) -> None:
    checked, _ = check_label_maps(images_of(folder), LabelStore(folder / "store"))
    for index, image_id in enumerate(checked.image_ids):
        values = LabelStore(folder / "store").read(image_id)
        assert values.shape == checked.image(index).size[::-1] and set(np.unique(values)) <= {0, 1, 2, 255}
    for file in sorted((folder / "store" / "label_maps").iterdir()):
        decode_indices(file)


def saliency(folder: Path) -> None:
    folder_with_csv(folder)
    for index in range(3):
        grey = Image.fromarray(np.random.default_rng(index).integers(0, 255, (16, 20), np.uint8))
        put(folder / "maps" / f"{index}.png", encode_png(grey))


def read_saliency(folder: Path) -> None:
    images = images_of(folder)
    maps = SaliencyMaps(SaliencyConfig(maps=str(folder / "maps")), DataConfig(data_dir=str(folder)), "train")
    check_saliency_maps(maps, images)
    for image_id in images.image_ids:
        assert maps.read(image_id, (16, 20)).shape == (16, 20)


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: default/train-*.parquet
---
# Text
"""


def hub_labels(folder: Path) -> None:
    put(folder / "README.md", CARD)
    store = store_of(folder)
    (folder / "default").mkdir()
    rows = store.to_dataset()
    embedded = [{"bytes": Path(str(store.path(i))).read_bytes(), "path": None} for i in rows["image_id"]]
    features = rows.features
    rows = rows.remove_columns("label_map").add_column("label_map", embedded, feature=ImageFeature())
    rows.select_columns(list(features)).to_parquet(str(folder / "default" / "train-00000.parquet"))
    info = {"class_names": ["cat", "dog"], "num_images": 3, "images_per_class": [3, 3], "lost_per_class": [0, 1]}
    source = {"stage": None, "method": "peak", "crf": True, "options": {"rule": "peak"}, "seed": 0, "num_images": 3}
    info |= {"skipped": ["3"], "sources": [source], "shards": {"train-00000.parquet": "0" * 64}, "complete": True}
    put(folder / "default" / "info.json", json.dumps(info))


def read_hub_labels(folder: Path) -> None:
    with patch.object(hub_store, "download", lambda *_: folder):
        labels = hub_store.HubLabelMaps("user/labels")
    ids, table = labels.proportions()
    assert table.shape == (len(ids), len(labels.class_names)) and ((table >= 0) & (table <= 1)).all()
    assert isinstance(labels.complete, bool)
    json.dumps(labels.skipped)
    for image_id in ids:
        assert labels.read(image_id).ndim == 2


def read_infos(folder: Path) -> None:
    info = read_info(folder / "default" / "info.json", "user/labels")
    json.dumps(info.skipped)
    assert all(isinstance(source["options"], dict) for source in info.sources)


def proportions(folder: Path) -> None:
    table = ProportionTable(("cat", "dog"), ("0", "1"), np.full((2, 2), 0.25), np.zeros((2, 2), bool))
    table.save(folder / "table.parquet")


def odd_table(folder: Path, random: Random) -> None:
    """Either the bytes are others, or the columns and the description."""
    proportions(folder)
    path = folder / "table.parquet"
    if random.randrange(2):
        path.write_bytes(mutated(path.read_bytes(), path.name, random))
        return
    columns = {
        "image_id": random.choice((["0", "1"], ["0", "0"], [0, 1], [None, "1"], [["a"], ["b"]])),
        "proportions": random.choice(
            ([[0.5, 0.5]] * 2, [[0.5]] * 2, [[0.5], [0.1, 0.2]], [None] * 2, [[2.0, -1.0]] * 2, ["a"] * 2)
        ),
        "lost": random.choice(([[False, True]] * 2, [[]] * 2, [[1, 0]] * 2, [None] * 2, [True, False])),
    }
    size = random.choice((0, 1, 2))
    arrays = {name: pa.array((list(values) * 2)[:size]) for name, values in columns.items() if random.randrange(8)}
    names = random.choice((["cat", "dog"], odd_value(random), [odd_value(random), "dog"]))
    description = {"class_names": written(names, random), "from_masks": written(odd_value(random), random)}
    pq.write_table(pa.table(arrays).replace_schema_metadata(random.choice((description, description, None))), path)


def read_proportions(folder: Path) -> None:
    table = ProportionTable.load(folder / "table.parquet")
    json.dumps([table.class_names, table.image_ids])
    assert all(isinstance(name, str) and name for name in (*table.class_names, *table.image_ids))
    assert table.proportions.shape == (len(table.image_ids), len(table.class_names))


def photo(folder: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 20, 3), np.uint8))
    for ending, options in {"png": {}, "jpg": {}, "webp": {}, "bmp": {}, "tif": {"compression": "tiff_lzw"}}.items():
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{ending}.{ending}", **options)


def read_photos(folder: Path) -> None:
    images = load_photos([folder], ["cat"])
    for index in range(len(images)):
        assert images.image(index).mode == "RGB"
        images.upright_size(index)
    for file in sorted(folder.iterdir()):
        decode_image(file)


# Checkpoints ---------------------------------------------------------------------------------------------------------

NAMES = {"id2label": {0: "background", 1: "cat"}, "label2id": {"background": 0, "cat": 1}}


def classifier(folder: Path) -> None:
    config = SpatialBceConfig(trunk="test_resnet", embedding_dim=8, id2label={0: "cat"}, label2id={"cat": 0})
    SpatialBceForImageClassification(config).save_pretrained(folder)
    SpatialBceImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def irn(folder: Path) -> None:
    IrnModel(IrnConfig(trunk="test_resnet", side_channels=8)).save_pretrained(folder)


def deeplab(folder: Path) -> None:
    config = DeepLabConfig(trunk="test_resnet", head="largefov", head_channels=8, **NAMES)
    DeepLabForSemanticSegmentation(config).save_pretrained(folder, max_shard_size="300KB")
    DeepLabImageProcessor(size={"longest_edge": 64}).save_pretrained(folder)


def segformer(folder: Path) -> None:
    tiny = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}
    SegformerForSemanticSegmentation(SegformerConfig(**tiny, **NAMES)).save_pretrained(folder)
    SegformerImageProcessor().save_pretrained(folder)


def check_page(folder: Path) -> None:
    checkpoint = load_checkpoint(str(folder))
    assert all(isinstance(name, str) for name in checkpoint.names)
    assert all(math.isfinite(number) for number in (*checkpoint.preprocessing.mean, *checkpoint.preprocessing.std))


def read_classifier(folder: Path) -> None:
    load_classifier(folder)
    check_page(folder)


def read_segmenter(folder: Path) -> None:
    load_segmenter(folder)
    check_page(folder)


def read_foreign(folder: Path) -> None:
    create_segmenter(SegmenterConfig(architecture="segformer", checkpoint=str(folder), weights="random"), ["cat"])
    read_segmenter(folder)


_MODEL = ("config.json", "preprocessor_config.json", "*.safetensors", "*.index.json")
_DATA = ("data", "image", "mask", "file")

READERS: dict[str, Reader] = {
    "tags.csv": Reader(folder_with_csv, read_source("folder"), ["tags.csv"], ("tags.csv", *_DATA)),
    "metadata.jsonl": Reader(folder_with_jsonl, read_source("folder"), ["*.jsonl"], ("metadata.jsonl", *_DATA)),
    "one-hot table": Reader(folder_with_columns, read_source("folder"), ["*.csv"], ("_classes.csv", *_DATA)),
    "metadata.parquet": Reader(folder_with_parquet, read_source("folder"), ["*.parquet"], ("parquet", *_DATA)),
    "categories": Reader(folder_with_categories, read_source("folder"), ["*.json"], ("_annotations.coco", *_DATA)),
    "label studio": Reader(folder_with_tasks, read_source("folder"), ["*.json"], ("export.json", *_DATA)),
    "cvat": Reader(folder_with_images, read_source("folder"), ["*.xml"], ("annotations.xml", *_DATA)),
    "voc": Reader(voc, read_source("voc"), ["ImageSets/*/*.txt", "Annotations/*.xml"], ("train.txt", ".xml", *_DATA)),
    "voc table": Reader(voc_with_table, read_source("voc"), ["*.json"], ("image_labels.json", *_DATA)),
    "coco": Reader(coco, read_source("coco", "train2014"), ["annotations/*"], ("instances_train2014.json", *_DATA)),
    "hub rows": Reader(
        lambda folder: folder.mkdir(exist_ok=True), read_source("hub"), names=("column", *_DATA), spoil=odd_rows
    ),
    "hub saved": Reader(saved_dataset, read_source("hub"), ["saved/*"], ("saved", "column", *_DATA)),
    "run notes": Reader(
        run_notes,
        read_run_notes,
        ["*.json", "figures/*.json", "stage/metrics.jsonl", "stage/checkpoints/*/progress.json"],
        (".json", "checkpoints"),
    ),
    "recipe": Reader(recipe, read_recipes, ["*.yaml"], (".yaml", "official")),
    "options": Reader(lambda folder: folder.mkdir(exist_ok=True), read_option, names=("",), spoil=odd_options),
    "label store": Reader(store_with_photos, read_store, ["store/*.json*"], ("store", "label map")),
    "label maps": Reader(store_with_photos, read_store_maps, ["store/label_maps/*"], ("label map", "mask")),
    "saliency maps": Reader(saliency, read_saliency, ["maps/*"], ("saliency",)),
    "hub labels": Reader(
        hub_labels,
        read_hub_labels,
        ["README.md", "default/*"],
        ("label maps", "user/labels", "README.md", "info.json"),
    ),
    "info.json": Reader(hub_labels, read_infos, ["default/info.json"], ("info.json",)),
    "proportions": Reader(proportions, read_proportions, names=("table.parquet", "proportions"), spoil=odd_table),
    "photos": Reader(photo, read_photos, ["*"], ("image", "photos")),
    "classifier": Reader(classifier, read_classifier, _MODEL, ("classifier",), cases=40),
    "irn": Reader(irn, load_boundary_network, _MODEL, ("irn",), cases=40),
    "deeplab": Reader(deeplab, read_segmenter, _MODEL, ("deeplab",), cases=30),
    "segformer": Reader(segformer, read_foreign, _MODEL, ("segformer",), cases=30),
}


def run_case(name: str, folder: Path, seed: int, number: int) -> str:
    """One case by its number; see [`Reader.case`]."""
    return READERS[name].case(folder, Random(f"{seed} {name} {number}"))


def folder_of(name: str, root: Path) -> Path:
    """A folder for a reader's files, called like it: it is the path that messages name."""
    return root / "".join(letter if letter.isalnum() else "_" for letter in name)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings about what is meant to be wrong."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        datasets.enable_progress_bars()
        transformers.utils.logging.enable_progress_bar()
