"""Label stores as datasets on the Hub, and back."""

import hashlib
import io
import json
import os
import re
import shlex
import warnings
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import DatasetCard, HfApi, constants
from PIL import Image

from sbce_hf.cli import main
from sbce_hf.config import load_recipe
from sbce_hf.data import load_images
from sbce_hf.data.decoding import encode_png
from sbce_hf.data.schema import label_features
from sbce_hf.files import write_json
from sbce_hf.hub import label_shards
from sbce_hf.hub.errors import HubError
from sbce_hf.hub.label_info import source_of
from sbce_hf.hub.label_shards import grey_png
from sbce_hf.hub.labels import default_config_name, render_label_folder
from sbce_hf.hub.ownership import KEPT_BELOW, MANIFEST
from sbce_hf.hub.publish import publish_folder
from sbce_hf.labels.hub_store import HubLabelMaps, open_label_maps
from sbce_hf.labels.label_maps import check_label_maps
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs.proportions import estimate_proportions
from sbce_hf.runs.single import evaluate_labels

NAMES = ("ant", "bee", "cat")
REPO = "user/labels"
SEGMENTER = {
    "weights": "random",
    "model": {"trunk": "test_resnet", "head": "largefov", "atrous_rates": [2], "head_channels": 8},
    "training": {"epochs": 1, "batch_size": 4, "crop_size": 32, "lr": 0.01, "num_workers": 1},
}


def fill(folder, ids, key="k", complete=True, seed=0, method="paper", called="method"):
    """A store with a random label map of each id: the same id and seed, the same label map."""
    store = LabelStore.create(folder, NAMES, key=key, num_images=len(ids), details={called: method, "crf": True})
    for image_id in ids:
        digits = int(hashlib.sha256(f"{image_id}{seed}".encode()).hexdigest()[:8], 16)
        label_map = np.random.default_rng(digits).choice(np.array([0, 1, 255], np.uint8), (6, 8))
        shares = [float((label_map == c + 1).mean()) for c in (0, 2)]
        record = {"classes": [0, 2], "thresholds": [0.4, 0.6], "proportions": shares, "soft_share": [0.1, 0.0]}
        store.write(image_id, label_map, record)
    if complete:
        store.mark_complete()
    return store


def push(store, *options, repo=REPO):
    return main(["push", "labels", str(store.directory), repo, *options])


def stored(hub, repo=REPO):
    return hub.repository(repo, "dataset").files()


def commits(hub, repo=REPO):
    """Commits after the first one, which a new repository has."""
    return len(list(hub.repository(repo, "dataset").refs["main"].history())) - 1


def go_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("run/round_2/labels/paper_crf", "round_2_paper_crf"),
        ("run/bce/labels/fixed", "bce_fixed"),
        ("run/segmenter/adaptive/predictions/labels_crf", "segmenter_adaptive_labels_crf"),
        ("my maps-1.0", "my_maps_1_0"),
    ],
)
def test_default_config_name(tmp_path, place, name):
    assert default_config_name(tmp_path / "a" / "b" / place) == name


def test_origin_of_a_store_in_a_run(tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "round_1" / "model").mkdir(parents=True)
    (run_dir / "round_1" / "model" / "model.safetensors").write_bytes(b"weights")
    (run_dir / "run.json").write_text("{}")
    (run_dir / "config.yaml").write_text("seed: 7\n")
    expected = {
        "round_1/labels/paper_crf": ("round_1", False),
        "irn/labels/irn_crf": ("irn", False),
        "leak_best_constant/labels/fixed": ("leak_best_constant", True),
        "segmenter/adaptive/predictions/labels": ("segmenter/adaptive", False),
        "segmenter/mask/predictions/labels": ("segmenter/mask", True),
    }
    for stage, ground_truth in expected.values():
        write_json(run_dir / stage / "stage.json", {"key": "k", "finished": True, "uses_masks": ground_truth})
    for place, (stage, ground_truth) in expected.items():
        source = source_of(fill(run_dir / place, ["a"]), 1)
        assert (source.stage, source.ground_truth, source.seed) == (stage, ground_truth, 7)
        assert (source.checkpoint is not None) == (stage == "round_1")
    alone = source_of(fill(tmp_path / "alone", ["a"]), 1)
    assert alone.stage is alone.seed is alone.ground_truth is None


@pytest.mark.parametrize("content", ["{", "[]", "!!python/object:os.x {}", "seed: {a: 1}", b"\xff", "#" * 2_000_000])
def test_a_damaged_config_or_record_of_the_run_is_told_in_one_line(tmp_path, capsys, content):
    store = fill(tmp_path / "run" / "round_1" / "labels" / "paper", ["a"])
    for damaged in ("config.yaml", "stage.json"):
        (tmp_path / "run" / "run.json").write_text("{}")
        (tmp_path / "run" / "config.yaml").write_text("seed: 7\n")
        write_json(tmp_path / "run" / "round_1" / "stage.json", {"key": "k", "finished": True})
        path = next((tmp_path / "run").rglob(damaged))
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        assert push(store, "--dry-run") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line and "give the `sbce run` command again" in line and len(line) < 1000


@pytest.mark.parametrize("instead", [None, Path.mkdir, os.mkfifo])
def test_a_label_map_that_is_missing_is_named(hub, tmp_path, capsys, instead):
    store = fill(tmp_path / "maps", ["a", "b", "c"])
    store.path("b").unlink()
    if instead is not None:
        instead(store.path("b"))
    for options in ([], ["--append"], ["--dry-run"]):
        assert push(store, *options) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"label maps {store.directory}: 1 are missing, the first is of image 'b'; make" in line
    assert not hub.requests


def test_nothing_of_a_config_outside_of_the_run_is_told(tmp_path, capsys):
    store = fill(tmp_path / "run" / "round_1" / "labels" / "paper", ["a"])
    (tmp_path / "run" / "run.json").write_text("{}")
    write_json(tmp_path / "run" / "round_1" / "stage.json", {"key": "k", "finished": True})
    (tmp_path / "secret").write_text("secret: x\n")
    (tmp_path / "run" / "config.yaml").symlink_to(tmp_path / "secret")
    assert push(store, "--dry-run") == 1
    assert "config.yaml: is a link to" in capsys.readouterr().err


def test_a_label_map_with_a_value_that_is_no_class_is_not_published(tmp_path, capsys):
    store = fill(tmp_path / "maps", ["a", "b"])
    with Image.open(store.path("b")) as image:
        values = np.array(image)
    values[2, 3] = 7
    store.path("b").write_bytes(encode_png(Image.fromarray(values)))
    assert push(store, "--dry-run") == 1
    assert "label map of image 'b'" in (line := capsys.readouterr().err) and "got value 7, expected 0" in line


# Older stores call their method "rule".
@pytest.mark.parametrize("called", ["method", "rule"])
@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("paper", "threshold rule `paper`, classes of a photo known from its tags"),
        ("irn", "random walk of IRN from the adaptive thresholds, classes of a photo known from its tags"),
        ("seeds", "what is sure in the class maps; 255 marks the rest, on purpose; classes of a photo known from"),
        (None, "prediction of a segmentation network (argmax), no tags used"),
    ],
)
def test_card_says_how_labels_were_made(hub, tmp_path, method, words, called):
    folder = tmp_path / "rendered"
    folder.mkdir()
    render_label_folder(fill(tmp_path / "store", ["a"], method=method, called=called), REPO, folder)
    assert words in (folder / "README.md").read_text()


def test_palette_becomes_grey_without_decoding():
    values = np.arange(256, dtype=np.uint8).reshape(8, 32)
    for colours, array in (([7, 8, 9] * 4, values % 4), ([7, 8, 9] * 256, values)):
        image = Image.fromarray(array)
        image.putpalette(colours)
        stream = io.BytesIO()
        image.save(stream, format="PNG", transparency=0)
        with Image.open(io.BytesIO(grey_png(stream.getvalue()))) as grey:
            grey.verify()
        with Image.open(io.BytesIO(grey_png(stream.getvalue()))) as grey:
            assert grey.mode == "L" and np.array_equal(np.asarray(grey), array)
    for damaged in (stream.getvalue()[:-20], stream.getvalue()[:60] + b"?" + stream.getvalue()[61:]):
        with pytest.raises(ValueError, match="damaged PNG|unreadable label map"):
            grey_png(damaged)
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, format="PNG")
    with pytest.raises(ValueError, match="expected one channel"):
        grey_png(stream.getvalue())


def test_push_and_read_back(hub, tmp_path, monkeypatch, capsys):
    store = fill(tmp_path / "run" / "round_2" / "labels" / "paper_crf", ["b", "a/x", "c"])
    assert push(store, "--license", "cc-by-4.0", "--tags", "ants") == 0
    name = "round_2_paper_crf"
    assert set(stored(hub)) - {".gitattributes"} == {
        "README.md",
        MANIFEST,
        f"{name}/info.json",
        f"{name}/train-00000.parquet",
    }
    assert commits(hub) == 1
    said = capsys.readouterr().out
    tag = re.search(r"tag: +(\S+)", said)[1]
    assert f"--labels {REPO}@{tag}:{name}" in said
    expected = store.to_dataset()
    assert expected.features == label_features(NAMES)
    whole = datasets.load_dataset(REPO, name, split="train", revision=tag)
    streamed = datasets.load_dataset(REPO, name, split="train", streaming=True)
    assert whole.features == streamed.features == expected.features
    for rows in (list(whole), list(streamed)):
        for row, own in zip(rows, expected, strict=True):
            assert row["label_map"].mode == "L"
            assert np.array_equal(np.asarray(row.pop("label_map")), store.read(row["image_id"]))
            own.pop("label_map")
            assert row == own and row["uncertainty"] == [0.1, 0.0]
    card = DatasetCard.load(REPO)
    assert card.data.license == "cc-by-4.0" and {"ants", "pseudo-labels"} <= set(card.data.tags)
    info = datasets.load_dataset_builder(REPO, name).info
    assert info.splits["train"].num_examples == 3 and info.features == expected.features
    assert "| 3 | cat | #808000 | 3 | 100.0 % |" in card.text and "Lost classes: 50.0 %" in card.text
    everything = b"".join(content for path, content in stored(hub).items())
    assert str(tmp_path).encode() not in everything

    online = open_label_maps(REPO, NAMES)
    go_offline(monkeypatch)
    for maps in (online, HubLabelMaps(f"{REPO}:{name}"), HubLabelMaps(REPO)):
        assert maps.complete and not maps.skipped and maps.class_names == NAMES
        assert "a/x" in maps and "z" not in maps
        ids, table = maps.proportions()
        assert ids == store.proportions()[0] and np.array_equal(table, store.proportions()[1])
        assert all(np.array_equal(maps.read(image_id), store.read(image_id)) for image_id in ids)
        with pytest.raises(KeyError, match="no image 'z'"):
            maps.read("z")


def test_configurations_are_kept_apart(hub, tmp_path, capsys):
    first, second = fill(tmp_path / "one", ["a", "b"]), fill(tmp_path / "two", ["a"], seed=1)
    assert push(first, "--license", "mit") == 0
    card = DatasetCard.load(REPO)
    card.text += "\nWritten by hand.\n"
    card.data["pretty_name"] = "Ants"
    card.push_to_hub(REPO, repo_type="dataset")
    before = stored(hub)
    assert push(second) == 0
    after = stored(hub)
    assert {path: after[path] for path in before if path.startswith("one/")} == {
        path: content for path, content in before.items() if path.startswith("one/")
    }
    card = DatasetCard.load(REPO)
    assert card.data.license == "mit" and card.data["pretty_name"] == "Ants"
    assert card.text.split(KEPT_BELOW)[1].strip() == "Written by hand."
    assert datasets.get_dataset_config_names(REPO) == ["one", "two"]
    for store, name in ((first, "one"), (second, "two")):
        maps = HubLabelMaps(f"{REPO}:{name}")
        assert maps.proportions()[0] == sorted(store.done_ids()) and (maps.read("a") == store.read("a")).all()
    with pytest.raises(ValueError, match=r"no configuration is named, expected one of \['one', 'two'\].*labels:one"):
        HubLabelMaps(REPO)
    made = commits(hub)
    assert push(first, "--license", "mit") == 0 and push(second) == 0
    assert commits(hub) == made and stored(hub) == after, "the same again changes nothing"


def test_a_repository_of_something_else(hub, tmp_path, capsys):
    datasets.Dataset.from_dict({"a": [1]}).push_to_hub(REPO, "photos")
    HfApi().upload_file(path_or_fileobj=b"By hand.\n", path_in_repo="notes.txt", repo_id=REPO, repo_type="dataset")
    store = fill(tmp_path / "maps", ["a"])
    assert push(store, "--config", "photos") == 1
    assert "its configuration photos was not made by sbce push labels" in capsys.readouterr().err
    assert push(store) == 0
    assert datasets.load_dataset(REPO, "photos", split="train")["a"][:] == [1]
    assert "notes.txt" in stored(hub) and "a" in HubLabelMaps(f"{REPO}:maps")
    with pytest.raises(ValueError, match="columns a, expected image_id, label_map"):
        HubLabelMaps(f"{REPO}:photos")


@pytest.mark.parametrize(
    ("card", "kept"),
    [
        ("---\n# My page\n\nWords.\n", "\n---\n# My page\n\nWords.\n"),
        ("---\nlicense: mit\nextra_gated_prompt: You agree.\n---\n", "extra_gated_prompt: You agree.\n"),
    ],
)
def test_a_card_that_was_there_is_kept(hub, tmp_path, card, kept):
    HfApi().create_repo(REPO, repo_type="dataset")
    HfApi().upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=REPO, repo_type="dataset")
    for name in ("one", "two"):
        assert push(fill(tmp_path / name, ["a"])) == 0
        text = stored(hub)["README.md"].decode()
        assert text.count(kept) == 1 and "## Configurations" in text


def test_metadata_that_are_nested_deeply_are_told(hub, tmp_path, monkeypatch, capsys):
    HfApi().create_repo(REPO, repo_type="dataset")
    card = b"---\nlicense: mit\n---\n"
    HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=REPO, repo_type="dataset")
    # The Hub may read more than this program can.
    deep = f"---\na: {'[' * 20_000}{']' * 20_000}\n---\n"
    read = DatasetCard.load
    monkeypatch.setattr(DatasetCard, "load", lambda path: [read(path), DatasetCard(deep)][1])
    assert push(fill(tmp_path / "maps", ["a"])) == 1
    assert f"{REPO}: README.md: its metadata are not those of a dataset's card (" in capsys.readouterr().err


def test_grown_and_shrunk(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(label_shards, "ROW_GROUP", 1)
    monkeypatch.setattr(label_shards, "SHARD_ROWS", 2)
    ids = ["a", "b", "c", "d", "e"]
    assert push(fill(tmp_path / "4" / "maps", ids[:4])) == 0
    before = stored(hub)
    assert len([path for path in before if path.endswith(".parquet")]) == 2
    sent = hub.count("^/lfs/", "PUT")
    grown = fill(tmp_path / "5" / "maps", ids)
    assert push(grown) == 0
    assert hub.count("^/lfs/", "PUT") == sent + 1, "shards that stay the same are not sent again"
    assert {path: stored(hub)[path] for path in before if path.endswith(".parquet")}.items() <= before.items()
    assert HubLabelMaps(REPO).proportions()[0] == ids
    made = commits(hub)
    assert push(fill(tmp_path / "1" / "maps", ids[:1], seed=1)) == 0
    assert commits(hub) == made + 1
    assert [path for path in stored(hub) if path.endswith(".parquet")] == ["maps/train-00000.parquet"]
    assert len(datasets.load_dataset(REPO, "maps", split="train")) == 1


def test_append(hub, tmp_path, capsys):
    assert push(fill(tmp_path / "one" / "maps", ["a", "b"]), "--append") == 0
    assert push(fill(tmp_path / "two" / "maps", ["b", "c"], key="other"), "--append") == 0
    assert "3 label maps, 1 of them in this push" in capsys.readouterr().out
    whole = datasets.load_dataset(REPO, "maps", split="train")
    assert sorted(whole["image_id"]) == ["a", "b", "c"]
    info = json.loads(stored(hub)["maps/info.json"])
    assert info["num_images"] == 3 and info["images_per_class"] == [3, 0, 3] and info["lost_per_class"] == [0, 0, 3]
    assert [(source["key"], source["num_images"]) for source in info["sources"]] == [("k", 2), ("other", 1)]
    before, made = stored(hub), commits(hub)
    for again in ("one", "two"):
        assert push(LabelStore(tmp_path / again / "maps"), "--append") == 0
    assert commits(hub) == made and stored(hub) == before
    assert push(fill(tmp_path / "bad" / "maps", ["b", "d"], seed=1), "--append") == 1
    assert re.search(
        "image 'b': .*has another label map of it than .*--append replaces nothing", capsys.readouterr().err
    )
    assert stored(hub) == before


def test_append_to_what_an_older_version_published(hub, tmp_path):
    assert push(fill(tmp_path / "one" / "maps", ["a"])) == 0
    info = stored(hub)["maps/info.json"].replace(b'"method":', b'"rule":')
    huggingface_hub.upload_file(path_or_fileobj=info, path_in_repo="maps/info.json", repo_id=REPO, repo_type="dataset")
    two = fill(tmp_path / "two" / "maps", ["b"], method="official")
    assert push(two, "--append") == 1
    # It left no list of what it wrote.
    assert push(two, "--append", "--overwrite") == 0
    card = stored(hub)["README.md"].decode()
    assert "1 of them: threshold rule `paper`" in card and "1 of them: threshold rule `official`" in card


def test_dry_run_sends_nothing(hub, tmp_path, capsys, monkeypatch):
    store = fill(tmp_path / "maps", ["a"])
    assert push(store, "--dry-run") == 0
    said = capsys.readouterr().out
    folder = re.search("files: (.*)", said)[1]
    assert f"would push to dataset {REPO}, branch main; nothing was sent" in said and "train-00000.parquet" in said
    assert len(datasets.load_dataset(folder, "maps", split="train")) == 1
    assert not hub.repositories and not [one for one in hub.requests if one.method not in ("GET", "HEAD")]
    go_offline(monkeypatch)
    asked = len(hub.requests)
    assert push(store, "--dry-run") == 0 and len(hub.requests) == asked


def test_dry_run_without_a_connection_says_how_to_go_on(hub, tmp_path, capsys):
    hub.cut_at_request(1)
    assert push(fill(tmp_path / "maps", ["a"]), "--dry-run") == 1
    assert "set HF_HUB_OFFLINE=1" in capsys.readouterr().err


def test_someone_else_pushes_meanwhile(hub, tmp_path):
    assert push(fill(tmp_path / "one", ["a"])) == 0
    folder = tmp_path / "rendered"
    rendered = render_label_folder(fill(tmp_path / "two", ["a"]), REPO, folder)
    HfApi().upload_file(path_or_fileobj=b"1", path_in_repo="new", repo_id=REPO, repo_type="dataset")
    before = stored(hub)
    with pytest.raises(HubError, match="someone else changed the branch during this push, so nothing was committed"):
        publish_folder(folder, REPO, "dataset", message="mine", parent_commit=rendered.parent_commit)
    assert stored(hub) == before


def test_a_cut_push_is_completed_by_the_same_push(hub, tmp_path, capsys):
    store = fill(tmp_path / "maps", ["a", "b"])
    hub.fail("/commit/", cut="request", times=None)
    assert push(store) == 1
    assert set(stored(hub)) == {".gitattributes"}
    hub.heal()
    assert push(store) == 0 and commits(hub) == 1
    assert HubLabelMaps(REPO).proportions()[0] == ["a", "b"]


def test_revision_pins_and_pull_requests_wait(hub, tmp_path):
    assert push(fill(tmp_path / "old" / "maps", ["a"])) == 0
    old = json.loads(stored(hub)["maps/info.json"])["tag"]
    new = fill(tmp_path / "new" / "maps", ["a", "b"], seed=1, complete=False)
    assert push(new, "--create-pr") == 0
    assert "b" not in HubLabelMaps(REPO)
    proposed = HubLabelMaps(f"{REPO}@refs/pr/1:maps")
    assert "b" in proposed and not proposed.complete
    assert push(new, "--revision", "next") == 0
    assert "b" in HubLabelMaps(f"{REPO}@next") and "b" not in HubLabelMaps(REPO)
    assert push(new) == 0
    assert "b" in HubLabelMaps(REPO) and "b" not in HubLabelMaps(f"{REPO}@{old}")
    assert (HubLabelMaps(f"{REPO}@{old}").read("a") != new.read("a")).any()


def test_errors(hub, tmp_path, capsys):
    store = fill(tmp_path / "maps", ["a"])
    assert push(store, repo="labels") == 1 and "expected user/name" in capsys.readouterr().err
    assert push(store, "--config", "a/b") == 1 and "expected letters, digits and _" in capsys.readouterr().err
    assert push(store, "--with-images") == 1 and "expected both or none" in capsys.readouterr().err
    empty = LabelStore.create(tmp_path / "empty", NAMES, key="k", num_images=1)
    assert push(empty) == 1 and "has no label map; label images first" in capsys.readouterr().err
    assert push(store) == 0
    with pytest.raises(ValueError, match=r"got configuration 'other', expected one of \['maps'\]"):
        HubLabelMaps(f"{REPO}:other")
    with pytest.raises(FileNotFoundError, match=f"{REPO} has no revision 'v9'"):
        HubLabelMaps(f"{REPO}@v9")
    with pytest.raises(FileNotFoundError, match="'user/absent'.*nor a dataset on the Hub that you may see"):
        open_label_maps("user/absent")
    with pytest.raises(ValueError, match=r"have classes \['ant', 'bee', 'cat'\], expected \['dog'\]"):
        HubLabelMaps(REPO, ("dog",))
    hub.login(None)
    hub.requests.clear()
    assert push(store) == 1 and "there is no token" in capsys.readouterr().err


@pytest.fixture(scope="module")
def shapes(tiny_recipe, tmp_path_factory):
    """A recipe with a segmenter, its images, and a store with a label map of each."""
    config = load_recipe(str(tiny_recipe), {"segmenter": SEGMENTER})
    images = load_images(config.data, "train")
    directory = tmp_path_factory.mktemp("shapes") / "maps"
    store = LabelStore.create(directory, images.class_names, key="k", num_images=len(images))
    for index, image_id in enumerate(images.image_ids):
        label_map, present = images.mask(index), np.flatnonzero(images.labels(index)).tolist()
        shares = [float((label_map == c + 1).mean()) for c in present]
        store.write(
            image_id, label_map, {"classes": present, "thresholds": [None] * len(present), "proportions": shares}
        )
    store.mark_complete()
    return config, images, store


def test_with_images(hub, shapes, tiny_recipe, capsys):
    _, images, store = shapes
    assert push(store, "--with-images", "--recipe", str(tiny_recipe), "--dry-run") == 0
    assert push(store, "--with-images", "--recipe", str(tiny_recipe)) == 0
    whole = datasets.load_dataset(REPO, split="train").cast_column("image", datasets.Image(decode=False))
    ids = images.image_ids
    assert sorted(whole["image_id"]) == sorted(ids)
    for row in whole:
        assert row["image"]["bytes"] == images.dataset["image"][ids.index(row["image_id"])]["bytes"]
        assert row["uncertainty"] == [None] * len(row["labels"])
    assert push(store, "--append") == 1 and "and photos, the store" in capsys.readouterr().err
    assert push(store, "--with-images", "--recipe", str(tiny_recipe), "--split", "val") == 1
    assert "labelled, but not in the recipe's split" in capsys.readouterr().err


def test_card_trains_a_segmenter(hub, shapes, tiny_recipe, tmp_path, capsys, monkeypatch):
    config, images, store = shapes
    assert push(store) == 0
    text = stored(hub)["README.md"].decode()
    python = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(python) == 2
    for snippet in python:
        exec(snippet, {})
    said = capsys.readouterr().out
    assert store.proportions()[0][0] in said and "(48, 48)" in said
    command = shlex.split(re.search(r"```bash\n(.*?)```", text, re.S)[1])
    assert command[:2] == ["sbce", "train-segmenter"]
    reference = command[command.index("--labels") + 1]

    maps = open_label_maps(reference, images.class_names)
    local = check_label_maps(images, store)[1]
    assert check_label_maps(images, maps)[1] == local
    ours, theirs = (estimate_proportions(found, images, config) for found in (maps, store))
    assert np.array_equal(ours.proportions, theirs.proportions) and np.array_equal(ours.lost, theirs.lost)
    assert evaluate_labels(config, reference)["mean_iou"] == 1.0

    section = [f"--set=segmenter.{key}={json.dumps(value)}" for key, value in SEGMENTER.items()]
    options = [str(tiny_recipe) if word == "RECIPE" else word for word in command[1:]]
    options[options.index("--output-dir") + 1] = str(tmp_path / "out")
    go_offline(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*options, *section]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["settings"]["inputs"]["label_maps"] == local
