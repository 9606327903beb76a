import re

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_run import LEAK, save_classifier, write_run

from sbce_hf.hub.models import find_model, render_model_folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("cards") / "run")


def card_of(source, folder, **options):
    folder.mkdir()
    return (render_model_folder(source, "user/model", folder, **options).folder / "README.md").read_text()


def rows(card, section):
    text = card.split(f"## {section}\n")[1].split("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]


def test_metadata_parses(run_dir, tmp_path):
    card = card_of(find_model(run_dir), tmp_path / "card", license="mit", tags=["ants", "bees"])
    assert card.startswith("---\n")
    values = yaml.safe_load(card.split("---\n")[1])
    assert (values["license"], values["library_name"]) == ("mit", "transformers")
    assert values["pipeline_tag"] == "image-classification" and "datasets" not in values
    assert {"sbce_hf", "weakly-supervised-semantic-segmentation", "ants", "bees"} == set(values["tags"])
    unknown = ModelCard(card_of(find_model(run_dir, "segmenter"), tmp_path / "unknown"))
    assert unknown.data.license == "unknown" and unknown.data.pipeline_tag == "image-segmentation"
    assert "whoever published them has not said" in unknown.text


def test_structured_results_are_this_models_and_never_a_leak(run_dir, tmp_path):
    data = ModelCard(card_of(find_model(run_dir), tmp_path / "classifier")).data
    assert [round(result.metric_value, 4) for result in data.eval_results] == [0.5123, 0.6]
    assert data.model_name == "model"
    for result, crf in zip(data.eval_results, (False, True), strict=True):
        assert (result.task_type, result.metric_type) == ("image-segmentation", "mean_iou")
        assert (result.dataset_name, result.dataset_split) == ("folder (my photos)", "train")
        assert result.metric_args == {
            "num_images": 7,
            "threshold_rule": "adaptive (paper)",
            "known_classes": "tags",
            "dense_crf": crf,
            "refinement": "none",
            "ground_truth_used": False,
        }
    data = ModelCard(card_of(find_model(run_dir, "segmenter"), tmp_path / "segmenter")).data
    assert [(r.metric_value, r.dataset_split) for r in data.eval_results] == [(0.45, "val")]
    assert data.eval_results[0].metric_args["known_classes"] == "none"
    # Trained on true masks: no result of a method that has none.
    assert ModelCard(card_of(find_model(run_dir / "segmenter" / "mask"), tmp_path / "mask")).data.eval_results is None


def test_every_row_is_stamped_and_the_leak_is_marked(run_dir, tmp_path):
    card = card_of(find_model(run_dir), tmp_path / "card")
    header, *table = rows(card, "Results")[-5:]
    for title in (
        "Split",
        "Images",
        "Classes of an image",
        "Threshold rule",
        "Dense CRF",
        "Refinement",
        "Ground truth",
    ):
        assert title in header
    assert table[-1] == (
        f"| bce | train | {LEAK.num_images} | known from tags | best constant 0.35 | yes | none "
        "| **yes** [leak: made with ground truth] | 87.7 |"
    )
    assert sum("[leak" in line for line in table) == 1
    assert table[0] == "| bce | train | 7 | known from tags | fixed 0.3 | no | none | no | 40.0 |"
    assert "**round_1**" in table[1] and "**51.2**" in table[1] and "**60.0**" in table[2]
    assert "0.87" not in card.split("---\n")[1]
    assert any("true masks" in line and "**yes**, for training" in line for line in rows(card, "Results"))


def test_says_how_it_came_about(run_dir, tmp_path):
    card = card_of(find_model(run_dir), tmp_path / "card")
    for said in ("Seed: 3", "0123456789abcdef", "12 images", "folder (my photos)", "abc1234", "2 cores, no GPU"):
        assert said in card
    assert "sbce run --recipe own.yaml" in card and "ECCV" in card and "bibtex" in card
    assert "| round_1 | 1 |" in card and "collapse" in card.split("Warnings:")[1]
    assert "no mask was trained on" in card and "trunk.safetensors" in card
    mask = card_of(find_model(run_dir / "segmenter" / "mask"), tmp_path / "mask")
    assert "**trained on true masks**" in mask and "no mask" not in mask
    assert rows(card, "What comes out")[1:] == [
        "| 0 | background | #000000 |",
        "| 1 | ant | #800000 |",
        "| 2 | bee\\|wasp | #008000 |",
    ]


def test_drawn_images_have_a_licence(tmp_path):
    card = card_of(find_model(write_run(tmp_path / "run", source="shapes")), tmp_path / "card")
    assert "drawn by the program, Apache-2.0" in card and "shapes (drawn by sbce_hf)" in card


def test_model_whose_training_is_not_known(tmp_path):
    save_classifier(tmp_path / "alone")
    card = card_of(find_model(tmp_path / "alone"), tmp_path / "card", with_tag=False)
    assert "says nothing about data and results" in card and "run.json" not in card
    assert ModelCard(card).data.eval_results is None
    assert "revision=" in card and not re.search(r'revision="v', card)


def test_no_gaps(run_dir, tmp_path):
    """Templates leave holes easily: blank lines, missing values, raw markup."""
    sources = [find_model(run_dir), find_model(run_dir, "segmenter"), find_model(run_dir / "segmenter" / "mask")]
    save_classifier(tmp_path / "alone")
    for index, source in enumerate([*sources, find_model(tmp_path / "alone")]):
        card = card_of(source, tmp_path / f"card{index}")
        assert "\n\n\n" not in card and "None" not in card and "{{" not in card and "{%" not in card
        assert card.count("```") % 2 == 0 and card.endswith("\n")
        for heading in re.findall(r"^#+ .*$", card, re.MULTILINE):
            assert f"\n\n{heading}\n\n" in card, heading
