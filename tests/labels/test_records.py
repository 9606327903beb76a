"""Label stores that something else has written, or that are damaged: one line that names file and field."""

import json

import numpy as np
import pytest

from sbce_hf.errors import UserError
from sbce_hf.labels.store import LabelStore

NAMES = ("cat", "dog")
RECORD = {"image_id": "a", "classes": [0, 1], "proportions": [0.5, 0.0], "thresholds": [0.3, None]}


@pytest.fixture
def folder(tmp_path):
    store = LabelStore.create(tmp_path / "store", NAMES, key="k", num_images=1, details={"config": {}, "crf": False})
    store.write("a", np.zeros((2, 2), np.uint8), {k: v for k, v in RECORD.items() if k != "image_id"})
    assert LabelStore(tmp_path / "store").record("a") == RECORD
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_names", "cat"),
        ("class_names", []),
        ("class_names", ["cat", 3]),
        ("class_names", ["a\x1b[2J"]),
        ("key", None),
        ("num_images", "1"),
        ("num_images", True),
        ("complete", "no"),
        ("config", []),
        ("config", {"note": 3}),
        ("crf", "yes"),
        ("skipped", {}),
    ],
)
def test_descriptions(folder, field, value):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, field: value}))
    with pytest.raises(UserError, match=rf"meta.json: {field}.*: got .*, expected .*"):
        LabelStore(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_id", None),
        ("image_id", ["a"]),
        ("classes", None),
        ("classes", 3),
        ("classes", [0, 2]),
        ("classes", [0, -1]),
        ("classes", [0, "1"]),
        ("classes", [True, False]),
        ("proportions", None),
        ("proportions", [0.5]),
        ("proportions", [0.5, "0"]),
        ("proportions", [0.5, 1.5]),
        ("proportions", [0.5, None]),
        ("thresholds", [0.3]),
        ("thresholds", {"a": 1}),
        ("soft_share", [0.1, []]),
        ("mean_probability", "high"),
        ("skipped", 3),
    ],
)
def test_records(folder, field, value):
    (folder / "records-00000.jsonl").write_text(json.dumps({**RECORD, field: value}) + "\n")
    with pytest.raises(UserError, match=rf"records-00000.jsonl, line 1: {field}: got .*; delete the folder"):
        LabelStore(folder)


@pytest.mark.parametrize("line", ["[]", "3", "null", "{", "\x00", "[" * 100_000, '{"image_id": NaN}', "\udcff"])
def test_lines_and_files_that_are_none(folder, line):
    content = line.encode(errors="surrogateescape") + b"\n"
    (folder / "records-00000.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="records-00000.jsonl, line 1: "):
        LabelStore(folder)
    (folder / "meta.json").write_bytes(content)
    with pytest.raises(UserError, match="meta.json: "):
        LabelStore(folder)
