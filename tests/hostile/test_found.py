"""What the cases of `test_readers.py` and `scripts/fuzz.py` have found, one of each kind."""

import json
import re
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from readers import READERS, folder_of

from sbce_hf.cli.mistakes import told_in_one_line
from sbce_hf.data.decoding import encode_png


def json_with(file, **fields):
    """A file's object with other fields; `None` leaves one out."""

    def spoil(folder):
        values = json.loads((folder / file).read_text()) | fields
        (folder / file).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return spoil


def content(file, data):
    def spoil(folder):
        (folder / file).write_bytes(data.encode(errors="surrogatepass") if isinstance(data, str) else data)

    return spoil


def record_with(**fields):
    def spoil(folder):
        lines = (folder / "store" / "records-00000.jsonl").read_text().splitlines()
        lines[0] = json.dumps(json.loads(lines[0]) | fields)
        (folder / "store" / "records-00000.jsonl").write_text("\n".join(lines) + "\n")

    return spoil


def table_with(names=None, **columns):
    def spoil(folder):
        path = folder / "table.parquet"
        table = pq.read_table(path)
        description = dict(table.schema.metadata) | ({b"class_names": json.dumps(names)} if names is not None else {})
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        pq.write_table(table.replace_schema_metadata(description), path)

    return spoil


def shows_columns(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_format_columns": ["image", "labels", "mask"]}))


def damaged_page(folder):
    data = bytearray((folder / "table.parquet").read_bytes())
    data[4:40] = b"\xff" * 36
    (folder / "table.parquet").write_bytes(data)


def shard_with(**columns):
    """A label set's rows with other values in some columns."""

    def spoil(folder):
        path = folder / "default" / "train-00000.parquet"
        table = pq.read_table(path)
        for name, change in columns.items():
            index = table.column_names.index(name)
            values = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
            table = table.set_column(index, table.schema.field(name), values)
        pq.write_table(table, path)

    return spoil


def first(value):
    return lambda values: [value, *values[1:]]


def linked_shard(folder):
    path = folder / "default" / "train-00000.parquet"
    (folder.parents[2] / "elsewhere").mkdir(exist_ok=True)
    path.rename(folder.parents[2] / "elsewhere" / "shard.parquet")
    path.symlink_to(folder.parents[2] / "elsewhere" / "shard.parquet")


def outline(segmentation):
    def spoil(folder):
        path = folder / "annotations" / "instances_train2014.json"
        values = json.loads(path.read_text())
        values["annotations"][0]["segmentation"] = segmentation
        path.write_text(json.dumps(values))

    return spoil


def card(text):
    return content("README.md", f"---\n{text}\n---\n")


def claims(size):
    """A label map whose header claims another size, with the right checksum."""

    def spoil(folder):
        path = folder / "store" / "label_maps" / "0.png"
        data = path.read_bytes()
        header = b"IHDR" + struct.pack(">II", *size) + data[24:29]
        path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])

    return spoil


def deep(folder):
    values = np.zeros((16, 20), np.uint16)
    (folder / "store" / "label_maps" / "0.png").write_bytes(encode_png(Image.fromarray(values)))


ALIASES = "configs:\n- a: &a0 [x, x, x]\n" + "".join(
    f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
LONG = "[" * 3000
INSTANCES = "annotations/instances_train2014.json"

FOUND = {
    "a deviation below 0": ("options", content("option", "model.initializer_range=-2"), "initializer_range: got -2"),
    "tags that are no UTF-8": (
        "tags.csv",
        content("tags.csv", b"file,tags\n\xff.png,cat\n"),
        "tags.csv missing: .*ÿ.png",
    ),
    "a name too long for any file": (
        "tags.csv",
        content("tags.csv", f"file,tags\n{LONG}.png,cat\n"),
        "images listed in",
    ),
    "a field without end": (
        "tags.csv",
        content("tags.csv", 'file,tags\n0.png,"' + "a" * 200_000),
        "tags.csv, line .*: a quote opens in this row and is not closed",
    ),
    "lines that are no UTF-8": (
        "metadata.jsonl",
        content("metadata.jsonl", b"\xff"),
        "metadata.jsonl, line 1: not valid JSON",
    ),
    "a number of 5000 digits": (
        "metadata.jsonl",
        content("metadata.jsonl", '{"file_name": ' + "9" * 5000),
        "line 1: not valid JSON",
    ),
    "a list that is no UTF-8": ("voc", content("ImageSets/Segmentation/train.txt", b"\x80"), "train.txt: .*no UTF-8"),
    "a list of endless names": (
        "voc",
        content("ImageSets/Segmentation/train.txt", LONG),
        "images of split .* missing",
    ),
    "an encoding there is not": (
        "voc",
        content("Annotations/0.xml", "<?xml version='1.0' encoding='none'?><a/>"),
        "0.xml: not valid XML",
    ),
    "tags that are lists": (
        "voc table",
        json_with("image_labels.json", **{"0": [["cat"]]}),
        "maps image ids to lists",
    ),
    "tags that are numbers": ("voc table", json_with("image_labels.json", **{"0": [3]}), "maps image ids to lists"),
    "tags that are no UTF-8 either": (
        "voc table",
        content("image_labels.json", b"{\xff"),
        "image_labels.json: .*UTF-8",
    ),
    "instances that are nested too deep": ("coco", content(INSTANCES, "[" * 100_000), "2014.json: not valid JSON"),
    "a polygon far away": ("coco", outline([[0, 0, 1e30, 0, 0, 1e30]]), "2014.json.*an outline.* pixels away"),
    "a polygon of great length": ("coco", outline([[0, 0, 20, 16] * 500]), "2014.json.*an outline.* pixels' length"),
    "runs beyond their text": ("coco", outline({"size": [16, 20], "counts": "0o"}), "2014.json.*an outline.*cut off"),
    "a size of another type": ("coco", outline({"size": [16, "x" * 9999], "counts": []}), "2014.json.*an outline"),
    "a dataset's state that is no JSON": (
        "hub saved",
        content("saved/state.json", b"{"),
        "state.json: not valid JSON",
    ),
    "a state without files": (
        "hub saved",
        json_with("saved/state.json", _data_files=None),
        "state.json: got .*_data_files",
    ),
    "a state that hides a column": (
        "hub saved",
        lambda folder: shows_columns(folder / "saved" / "state.json"),
        None,
    ),
    "a dataset that is cut off": (
        "hub saved",
        content("saved/data-00000-of-00001.arrow", b"\xff\xff\xff\xff\x38\x02\0\0\x10"),
        "saved: cannot be read as a dataset",
    ),
    "features that are others": ("hub saved", json_with("saved/dataset_info.json", features={}), "saved: "),
    "a card that is no YAML": ("hub labels", card("configs: ["), "README.md: not valid YAML"),
    "a card with an alias bomb": ("hub labels", card(ALIASES), "README.md: line 6: more than .* entries"),
    "a card with odd files": (
        "hub labels",
        card("configs: [{config_name: default, data_files: [{split: train, url: x}]}]"),
        "label maps user/labels: README.md: data_files",
    ),
    "a card with a configuration that is a number": ("hub labels", card("configs: [3]"), "README.md: configs: got"),
    "label maps that are no parquet": (
        "hub labels",
        content("default/train-00000.parquet", b"PAR1"),
        "label maps user/labels: no parquet files",
    ),
    "a label map that leaves the folder": (
        "hub labels",
        shard_with(image_id=first("../../x")),
        "label maps user/labels: image id '../../x' is no relative path",
    ),
    "a label map from the root": ("hub labels", shard_with(image_id=first("/x")), "image id '/x' is no relative path"),
    "a label map without a name": ("hub labels", shard_with(image_id=first("")), "image id '' is no relative path"),
    "a label map with a zero": ("hub labels", shard_with(image_id=first("a\0b")), "is no relative path"),
    "a label map of nothing": ("hub labels", shard_with(image_id=first(None)), "image_id: got a row without a name"),
    "two label maps of one name": (
        "hub labels",
        shard_with(image_id=lambda ids: [ids[0], ids[0], *ids[2:]]),
        "occurs twice in split 'train'",
    ),
    "proportions of other labels": (
        "hub labels",
        shard_with(proportions=first([0.1] * 7)),
        "image '0': got another number of proportions than of labels",
    ),
    "a label that is no class": ("hub labels", shard_with(labels=first([0, 7])), "got labels .*7.*, expected 0 to 1"),
    "a label map of somebody else": ("hub labels", linked_shard, "label maps user/labels: has links to files"),
    "a pattern as long as no name": (
        "hub labels",
        card("configs: [{config_name: default, data_files: [{split: train, path: " + "a" * 300 + "}]}]"),
        "label maps user/labels: README.md: data_files: .*too long",
    ),
    "a pattern that is none": (
        "hub labels",
        card("configs: [{config_name: default, data_files: [{split: train, path: 'a**b/*.parquet'}]}]"),
        "label maps user/labels: README.md: data_files",
    ),
    "a configuration that leaves the folder": (
        "hub labels",
        card("configs: [{config_name: ../../x, data_files: [{split: train, path: '*/*.parquet'}]}]"),
        "got '../../x', expected files of the dataset itself",
    ),
    "an info that is a list": ("hub labels", content("default/info.json", "[]"), "info.json: expected complete"),
    "skipped images that are numbers": (
        "hub labels",
        json_with("default/info.json", skipped=[3]),
        "info.json: expected",
    ),
    "a record without thresholds": ("label store", record_with(thresholds=None), None),
    "a description without options": ("label store", json_with("store/meta.json", config=None), None),
    "a class that is there twice": (
        "label store",
        json_with("store/meta.json", class_names=["cat", "cat"]),
        "meta.json: class_names: got 'cat' twice",
    ),
    "an integer for which there is no column": (
        "label store",
        record_with(thresholds=[10**30, None]),
        "line 1: thresholds: got .*expected a finite number",
    ),
    "a record of a file elsewhere": ("label store", record_with(image_id="../x"), "store: image id '../x': expected"),
    "a label map of a gigapixel": ("label maps", claims((40_000, 40_000)), "image '0'.*DecompressionBomb"),
    "a label map of no pixels": ("label maps", claims((0, 16)), "image '0'"),
    "a label map of 16 bits": ("label maps", deep, "image '0'.*uint16"),
    "a side of less than nothing": (
        "deeplab",
        json_with("preprocessor_config.json", size={"longest_edge": -2}),
        "deeplab.*: preprocessor_config.json: size: got -2, expected 1 to 4096 pixels",
    ),
    "a table with a damaged page": ("proportions", damaged_page, "table.parquet: not a table of proportions"),
    "a table with too few numbers": (
        "proportions",
        table_with(proportions=[[0.5], [0.5]]),
        "table.parquet: not a table",
    ),
    "a table of text": (
        "proportions",
        table_with(proportions=["a", "b"]),
        "table.parquet: not a table of proportions",
    ),
    "a table without a name": ("proportions", table_with(image_id=["0", None]), "table.parquet: not a table"),
    "a table with an image twice": (
        "proportions",
        table_with(image_id=["0", "0"]),
        "table.parquet: not a table.*twice",
    ),
    "a table of odd classes": (
        "proportions",
        table_with(names=[["a"], {}]),
        "table.parquet: not a table.*class_names",
    ),
    "a boundary network of odd sides": ("irn", json_with("config.json", side_channels=1.5), "irn.*side_channels"),
    "a boundary network of other weights": (
        "irn",
        json_with("config.json", side_channels=16),
        "irn: the weights are not",
    ),
    "labels that are lists": (
        "segformer",
        json_with("config.json", id2label={"0": ["background"], "1": "cat"}),
        "segformer.*id2label: 0: got",
    ),
    "a size of sizes": (
        "segformer",
        json_with("preprocessor_config.json", size={"height": {"a": 1}, "width": {"a": 1}}),
        None,
    ),
}


@pytest.mark.parametrize("kind", FOUND)
def test_is_told_in_one_line_or_read(kind, tmp_path):
    name, spoil, message = FOUND[kind]
    folder = folder_of(name, tmp_path)
    READERS[name].build(folder)
    spoil(folder)
    if message is None:
        READERS[name].read(folder)
        return
    with pytest.raises(Exception) as caught:  # noqa: B017 (which one is told next)
        READERS[name].read(folder)
    line = told_in_one_line(caught.value)
    assert line is not None and "\n" not in line and len(line) < 2500
    assert re.search(message, line), line
