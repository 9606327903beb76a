import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file
from tiny_run import NAMES, save_classifier, write, write_run
from transformers import (
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

import sbce_hf
from sbce_hf.cli import main
from sbce_hf.files import read_json, write_json
from sbce_hf.hub.models import find_model, render_model_folder
from sbce_hf.hub.publish import publish_folder
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig

LABELS = {"classifier": ["background", *NAMES], "segmenter": ["background", *NAMES]}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("models") / "run")


def render(source, tmp_path, **options):
    folder = tmp_path / f"rendered{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    return render_model_folder(source, "user/model", folder, **options)


def texts(folder):
    return {path.name: path.read_text() for path in folder.rglob("*") if path.suffix in (".md", ".json", ".py")}


def python_blocks(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_model_is_found_from_every_place(run_dir, tmp_path):
    for path in (run_dir, run_dir / "round_1", run_dir / "round_1" / "model"):
        source = find_model(path)
        assert source.model_dir == run_dir / "round_1" / "model" and source.run_dir.samefile(run_dir)
    assert find_model(run_dir, "segmenter").model_dir == run_dir / "segmenter" / "adaptive" / "model"
    assert find_model(run_dir / "segmenter" / "mask").run_dir.samefile(run_dir)
    shutil.copytree(run_dir / "round_1" / "model", tmp_path / "alone")
    assert find_model(tmp_path / "alone").stage_dir is None
    shutil.copytree(run_dir / "round_1", tmp_path / "stage")
    assert find_model(tmp_path / "stage").run_dir is None


def test_nothing_is_found(run_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_model(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no config.yaml"):
        find_model(tmp_path)
    with pytest.raises(ValueError, match="no run directory"):
        find_model(run_dir / "round_1", "segmenter")
    unfinished = shutil.copytree(run_dir, tmp_path / "run")
    (unfinished / "report.md").unlink()
    with pytest.raises(FileNotFoundError, match="not finished"):
        find_model(unfinished)
    assert find_model(unfinished / "round_1").stage_dir == unfinished / "round_1"


@pytest.mark.parametrize("part", ["classifier", "segmenter"])
def test_folder_is_complete_and_says_nothing_of_this_machine(run_dir, tmp_path, part):
    source = find_model(run_dir, part)
    rendered = render(source, tmp_path)
    names = {path.relative_to(rendered.folder).as_posix() for path in rendered.folder.rglob("*") if path.is_file()}
    code = {path.name for path in source.model_dir.glob("*.py")}
    weights = {"model.safetensors", "config.json", "preprocessor_config.json"}
    assert len(code) >= 5
    assert names == {*weights, *code, "run.json", "quality.md", "figures/thresholds.png", "README.md"}
    for name, text in texts(rendered.folder).items():
        assert str(run_dir.parent) not in text and not re.search(r"(?<![\w:/.])/(tmp|home|root|work)\b", text), name
    config = json.loads((rendered.folder / "config.json").read_text())
    assert config["palette"] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert list(config["id2label"].values()) == (list(NAMES) if part == "classifier" else LABELS[part])
    notes = json.loads((rendered.folder / "run.json").read_text())
    assert notes["command"] == "sbce run --recipe own.yaml --data-dir 'my photos' --set " + (
        f"data.data_dir={run_dir.parent.name}"
    )
    assert notes["config"]["data"]["data_dir"] == "my photos"
    assert notes["config"]["trunk_weights"] == "trunk.safetensors"
    assert (notes["seed"], notes["versions"]["git"], notes["hardware"]) == (3, "abc1234", "2 cores, no GPU")
    assert notes["manifest_hash"] == "0123456789abcdef"


def test_equal_sources_give_equal_folders(run_dir, tmp_path):
    first, second = (render(find_model(run_dir), tmp_path) for _ in range(2))
    assert first.tag == second.tag and texts(first.folder) == texts(second.folder)
    other = write_run(tmp_path / "other" / "run", seed=1)
    assert render(find_model(other), tmp_path).tag != first.tag
    assert re.fullmatch(r"v[0-9a-f]{12}", first.tag)
    assert render(find_model(run_dir), tmp_path, with_tag=False).tag is None


def test_contact_sheet_only_where_it_may_be(run_dir, tmp_path):
    drawn = write_run(tmp_path / "drawn" / "run", source="shapes")
    for source, wanted, shown in (
        (run_dir, None, False),
        (run_dir, True, True),
        (drawn, None, True),
        (drawn, False, False),
    ):
        folder = render(find_model(source), tmp_path, contact_sheet=wanted).folder
        assert (folder / "figures" / "sheet.png").is_file() is shown
        assert ("(figures/sheet.png)" in (folder / "README.md").read_text()) is shown
    save_classifier(tmp_path / "alone")
    with pytest.raises(FileNotFoundError, match="--contact-sheet.*no finished run"):
        render(find_model(tmp_path / "alone"), tmp_path, contact_sheet=True)


def test_model_that_cannot_be_published(run_dir, tmp_path):
    broken = shutil.copytree(run_dir / "round_1" / "model", tmp_path / "broken")
    for path in broken.glob("*.py"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="auto_map.*save the model again"):
        render(find_model(broken), tmp_path)
    write(broken / "config.json", '{"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}')
    with pytest.raises(ValueError, match="ResNetForImageClassification"):
        render(find_model(broken), tmp_path)
    whole = shutil.copytree(run_dir / "round_1" / "model", tmp_path / "whole")
    (whole / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json"):
        render(find_model(whole), tmp_path)


def test_a_boundary_network_is_no_product(tmp_path):
    model = tmp_path / "irn" / "model"
    sbce_hf.IrnModel(sbce_hf.IrnConfig(trunk="test_resnet", side_channels=4)).save_pretrained(model)
    with pytest.raises(ValueError, match="got architecture 'IrnModel', expected SpatialBceForImageClassification or"):
        render(find_model(model.parent), tmp_path)


def test_warnings_are_of_the_labels_it_was_trained_on(run_dir, tmp_path):
    copied = shutil.copytree(run_dir, tmp_path / "run")
    config = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump({**config, "irn": {}}))
    warning = "- {}, ant: lost in 9 % of its images"
    for stage in ("round_1", "irn"):
        values = read_json(copied / "round_1" / "quality.json")
        values["stage"]["stage"] = stage
        values["stage"]["classes"][0]["warnings"] = ["lost in 9 % of its images"]
        write_json(copied / stage / "quality.json", values)
    for part, stage in (("classifier", "round_1"), ("segmenter", "irn")):
        card = (render(find_model(copied, part), tmp_path).folder / "README.md").read_text()
        assert [other for other in ("round_1", "irn") if warning.format(other) in card] == [stage]


def test_palette_is_checked():
    with pytest.raises(StrictDataclassError, match="palette: got .* expected 3 colours"):
        SpatialBceConfig(num_labels=2, palette=[[0, 0, 0], [128, 0, 0]])
    with pytest.raises(StrictDataclassError, match="palette"):
        SpatialBceConfig(num_labels=1, palette=[[0, 0, 0], [256, 0, 0]])


def test_network_of_transformers(hub, tmp_path):
    names = {0: "background", 1: "ant"}
    sizes = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    config = SegformerConfig(id2label=names, label2id={name: value for value, name in names.items()}, **sizes)
    model = SegformerForSemanticSegmentation(config)
    model.save_pretrained(tmp_path / "segformer")
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "segformer")
    rendered = render(find_model(tmp_path / "segformer"), tmp_path)
    card = (rendered.folder / "README.md").read_text()
    assert "trust_remote_code" not in card and "import sbce_hf" not in card and "not recorded" in card.lower()
    publish_folder(rendered.folder, "user/model", "model", message="Publish", tag=rendered.tag)
    loaded = AutoModelForSemanticSegmentation.from_pretrained("user/model", revision=rendered.tag)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert loaded.config.palette == [[0, 0, 0], [128, 0, 0]]


# Runs what the cards say in a process that cannot import the package, and keeps what came out.
WITHOUT_THE_PACKAGE = """
import sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sbce_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from safetensors.torch import save_file

for name in sys.argv[1:]:
    values = {}
    for block in Path(f"{name}.md").read_text().split("```python\\n")[1:]:
        code = block.split("```")[0]
        if "import sbce_hf" not in code:
            exec(compile(code, name, "exec"), values)
    save_file({key: value.clone() for key, value in values["model"].state_dict().items()}, f"{name}.safetensors")
    save_file({"label_map": values["label_map"]}, f"{name}.map.safetensors")
    for found in values.get("segments", []):
        found["mask"].save(f"{found['label'].replace('|', '_')}.png")
assert not [name for name in sys.modules if name.startswith("sbce_hf")]
"""


def test_published_models_come_back(hub, hub_environment, run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    patches = np.random.default_rng(0).integers(0, 255, (2, 3, 3))
    Image.fromarray(np.kron(patches, np.ones((35, 30, 1))).astype(np.uint8)).save("photo.jpg", quality=95)
    label_maps = {}
    for part in ("classifier", "segmenter"):
        assert main(["push", "model", str(run_dir), f"user/{part}", "--part", part]) == 0
        tag = re.search(r"tag: +(\S+)", capsys.readouterr().out)[1]
        card = hub.repository(f"user/{part}").files(tag)["README.md"].decode()
        assert ModelCard.load(f"user/{part}").content == card and card.count(f'revision="{tag}"') >= 4
        (tmp_path / f"{part}.md").write_text(card)
        cls = (
            sbce_hf.SpatialBceForImageClassification
            if part == "classifier"
            else sbce_hf.DeepLabForSemanticSegmentation
        )
        source = find_model(run_dir, part).model_dir
        state = load_file(source / "model.safetensors")
        assert state.keys() == load_file(hf_hub_download(f"user/{part}", "model.safetensors", revision=tag)).keys()
        loaded = cls.from_pretrained(f"user/{part}", revision=tag)
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
        assert len(loaded.config.palette) == 3 and loaded.config.palette[1] == [128, 0, 0]
        values = {}
        for code in python_blocks(card):
            exec(compile(code, part, "exec"), values)
        label_maps[part] = values["label_map"].numpy()
        assert label_maps[part].shape == (70, 90) and len(np.unique(label_maps[part])) > 1
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, "classifier", "segmenter"]
    done = subprocess.run(command, env=hub_environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part, label_map in label_maps.items():
        state = load_file(find_model(run_dir, part).model_dir / "model.safetensors")
        assert all(torch.equal(value, state[name]) for name, value in load_file(f"{part}.safetensors").items())
        assert np.array_equal(load_file(f"{part}.map.safetensors")["label_map"].numpy(), label_map)
    for value, name in enumerate(LABELS["segmenter"]):
        path = tmp_path / f"{name.replace('|', '_')}.png"
        mask = np.asarray(Image.open(path)) > 0 if path.is_file() else np.zeros((70, 90), bool)
        assert np.array_equal(mask, label_maps["segmenter"] == value)
