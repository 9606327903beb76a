"""The stage of a run, and the single step, that label images by somebody's saliency maps."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image
from test_refine import SECTION as IRN
from test_refine import SEGMENTER

from sbce_hf.cli import main
from sbce_hf.config import load_recipe, to_mapping
from sbce_hf.data import load_images
from sbce_hf.errors import UserError
from sbce_hf.evaluation.confusion import score_store
from sbce_hf.files import read_json
from sbce_hf.hub.label_info import source_of
from sbce_hf.hub.labels import render_label_folder
from sbce_hf.hub.models import find_model, render_model_folder
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs.run import run

NOTE = "uses a saliency network"


@pytest.fixture(scope="module")
def images(tiny_recipe):
    return load_images(load_recipe(str(tiny_recipe)).data, "train")


@pytest.fixture(scope="module")
def maps(images, tmp_path_factory):
    """What a saliency network might say of the shapes: their outline, with noise."""
    folder, generator = tmp_path_factory.mktemp("somewhere") / "glow", np.random.default_rng(0)
    folder.mkdir()
    for index, image_id in enumerate(images.image_ids):
        truth = images.mask(index)
        values = np.where(truth > 0, 200, 10) + generator.normal(0, 4, truth.shape)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{image_id}.png")
    return folder


@pytest.fixture(scope="module")
def config(tiny_recipe, maps):
    section = {"maps": str(maps)}
    return load_recipe(str(tiny_recipe), {"rounds": 1, "saliency": section, "segmenter": SEGMENTER})


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "finished"
    return run_dir, run(config, run_dir, "sbce run --recipe tiny.yaml")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_salient_pixels_are_foreground_with_the_classes_of_the_round(finished, images, maps):
    run_dir, summary = finished
    assert summary.label_maps == run_dir / "saliency" / "labels" / "saliency_crf"
    labels, before = (LabelStore(run_dir / name) for name in ("saliency/labels/saliency", "round_1/labels/paper_crf"))
    assert labels.complete and len(labels.done_ids()) == 12
    for image_id in images.image_ids:
        with Image.open(maps / f"{image_id}.png") as image:
            salient = np.asarray(image) > 20
        found, earlier = labels.read(image_id), before.read(image_id)
        assert ((found > 0) == salient).all()
        assert (found == earlier)[salient & (earlier > 0)].all()
    # The segmenter was trained on them: without them it would need none.
    assert set(read_json(run_dir / "segmenter/adaptive/stage.json")["needs"]) == {"saliency", "round_1"}


def test_everything_says_that_a_saliency_network_was_used(finished, maps, tmp_path):
    run_dir, summary = finished
    rows = [row for row in summary.scores if row.stage == "saliency"]
    assert [row.crf for row in rows] == [False, True]
    assert all(row.note == NOTE and not row.uses_ground_truth for row in rows)
    assert all(NOTE not in row.note for row in summary.scores if row.stage != "saliency")
    report = (run_dir / "report.md").read_text()
    assert f"| Saliency maps | glow, rule edam: {NOTE}, which was trained on masks |" in report
    assert f"| saliency | saliency (edam, classes of the stage before) | yes | {NOTE} |" in report
    assert "curves_saliency" not in report and "after the CRF, refined, truth" in report
    # Label maps of their own, and on the Hub.
    store = LabelStore(run_dir / "saliency/labels/saliency_crf")
    options = source_of(store, 12).options
    assert (options["note"], options["saliency"]["maps"], options["saliency"]["rule"]) == (NOTE, "glow", "edam")
    card = render_label_folder(store, "user/labels", tmp_path / "labels").folder / "README.md"
    assert f"classes of a photo known from its tags; **{NOTE}**, maps `glow`" in card.read_text()
    assert str(maps.parent) not in (tmp_path / "labels" / "saliency_saliency_crf" / "info.json").read_text()


def test_so_does_the_segmenter_that_was_trained_on_them(finished, config, maps, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir, ignore=shutil.ignore_patterns("segmenter"))
    section = replace(config.segmenter, score_split="train", compare=("bce",))
    summary = run(replace(config, segmenter=section), run_dir)
    assert {row.labels: row.note for row in summary.segmenter_scores} == {"adaptive": NOTE, "bce": ""}
    assert f"| the run's label maps ({NOTE}) | no |" in (run_dir / "report.md").read_text()
    for part, folder in (("segmenter", tmp_path / "segmenter"), ("classifier", tmp_path / "classifier")):
        folder.mkdir()
        render_model_folder(find_model(run_dir, part), "user/model", folder)
        card = (folder / "README.md").read_text()
        assert (f"made from tags ({NOTE}); no mask" in card) == (part == "segmenter")
        assert (f"refinement: {NOTE}" in card) == (part == "segmenter")
        assert f"| argmax | no | {NOTE} |" in card.replace("**", "")
        assert f"| yes | {NOTE} | no |" in card.replace("**", "")
        assert str(maps.parent) not in card + (folder / "run.json").read_text()


def test_a_segmenter_outside_of_a_run_says_so_too(finished, tiny_recipe, tmp_path):
    command = ["train-segmenter", "--recipe", str(tiny_recipe), "--checkpoint", str(finished[0] / "round_1" / "model")]
    command += ["--set", f"segmenter={json.dumps(SEGMENTER)}", "--output-dir", str(tmp_path / "segmenter")]
    assert main([*command, "--labels", str(finished[0] / "saliency" / "labels" / "saliency_crf")]) == 0
    (tmp_path / "card").mkdir()
    render_model_folder(find_model(tmp_path / "segmenter"), "user/model", tmp_path / "card")
    card = (tmp_path / "card" / "README.md").read_text()
    assert f"A single stage outside of a run, on 12 images; its label maps: {NOTE}; its settings\nare in" in card


def test_killed_in_the_middle_it_ends_with_the_same_label_maps(finished, config, tmp_path):
    recipe, run_dir = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(to_mapping(config)))
    shutil.copytree(finished[0], run_dir, ignore=shutil.ignore_patterns("saliency", "segmenter", "report.md"))
    command = [sys.executable, "-m", "sbce_hf.cli", "run", "--recipe", str(recipe), "--output-dir", str(run_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    while not list(run_dir.glob("saliency/labels/saliency/label_maps")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert main([*command[3:]]) == 0
    assert contents(run_dir / "saliency") == contents(finished[0] / "saliency")


def test_a_finished_run_does_nothing_again_and_the_maps_may_move(finished, config, maps, tmp_path):
    run_dir, summary = finished
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "saliency").rglob("*.png")}
    assert run(config, run_dir).scores == summary.scores
    moved = shutil.copytree(maps, tmp_path / "moved")
    assert run(replace(config, saliency=replace(config.saliency, maps=str(moved))), run_dir).scores == summary.scores
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())


def test_other_maps_or_constants_are_another_run(finished, config, images, maps, tmp_path):
    changed = shutil.copytree(maps, tmp_path / "glow")
    Image.new("L", (48, 48), 99).save(changed / f"{images.image_ids[0]}.png")
    section = config.saliency
    for other, words in (
        (replace(section, maps=str(changed)), r"saliency\.outside was '\w+', is '\w+'"),
        (replace(section, background_saliency=30), r"saliency\.background_saliency was 20, is 30"),
        (replace(section, rule="oaa"), r"saliency\.rule was 'edam', is 'oaa'"),
    ):
        with pytest.raises(ValueError, match=rf"saliency: {words}.*remove saliency and segmenter/adaptive"):
            run(replace(config, saliency=other), finished[0])


def test_after_irn_the_classes_are_those_of_irn(tiny_recipe, images, maps, tmp_path):
    overrides = {"rounds": 1, "irn": IRN, "saliency": {"maps": str(maps)}, "contact_images": 0}
    run(load_recipe(str(tiny_recipe), overrides), tmp_path)
    record = read_json(tmp_path / "saliency" / "stage.json")
    assert list(record["needs"]) == ["irn", "round_1"] and not record["uses_masks"]
    labels, before = (LabelStore(tmp_path / name) for name in ("saliency/labels/saliency", "irn/labels/irn_crf"))
    for image_id in images.image_ids:
        found, earlier = labels.read(image_id), before.read(image_id)
        assert (found == earlier)[(found > 0) & (earlier > 0)].all()


def test_images_of_which_all_is_ignored_count_as_wrong_and_stay_in_the_run(tiny_recipe, images, maps, tmp_path):
    glow = shutil.copytree(maps, tmp_path / "glow")
    dark = images.image_ids[:2]
    for image_id in dark:
        Image.new("L", (48, 48), 0).save(glow / f"{image_id}.png")
    section = {"maps": str(glow), "rule": "oaa"}
    overrides = {"rounds": 1, "saliency": section, "labelling": {"crf": None}, "segmenter": SEGMENTER}
    config = load_recipe(str(tiny_recipe), overrides)
    summary = run(config, tmp_path / "run")
    store = LabelStore(tmp_path / "run" / "saliency" / "labels" / "saliency")
    assert store.undecided >= set(dark) and not store.unreadable
    values = np.unique(np.stack([store.read(image_id) for image_id in sorted(store.done_ids())]))
    assert 255 in values
    (row,) = [row for row in summary.scores if row.stage == "saliency"]
    assert row.num_images == 12
    # Twelve images, of which those that are undecided have no right pixel.
    decided = images.select([index for index, name in enumerate(images.image_ids) if name in store])
    assert row.mean_iou < score_store(store, decided)["mean_iou"]
    trained = json.loads((tmp_path / "run/segmenter/adaptive/summary.json").read_text())["images"]
    assert trained == len(store.done_ids()) == 12 - len(store.undecided)
    # What continues a run sees what it saw.
    assert run(config, tmp_path / "run").scores == summary.scores


def test_the_single_step(finished, tiny_recipe, maps, tmp_path, capsys):
    command = ["label", "--recipe", str(tiny_recipe), "--checkpoint", str(finished[0] / "round_1" / "model")]
    command += ["--output-dir", str(tmp_path / "labels"), "--set", f"saliency.maps={maps}"]
    assert main(command) == 0
    assert f"label maps: {tmp_path / 'labels' / 'saliency_crf'}\n12 labelled now" in capsys.readouterr().out
    # There is no stage before, so this is the published rule.
    store = LabelStore(tmp_path / "labels" / "saliency")
    assert store.meta["config"]["in_words"] == "saliency (edam)" and store.meta["config"]["note"] == NOTE
    assert main([*command, "--set", "saliency.background_saliency=99"]) == 1
    assert "was made with key" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["run", "dry-run", "label"])
def test_what_cannot_work_stops_before_anything_is_made(finished, tiny_recipe, images, maps, tmp_path, capsys, step):
    holes = shutil.copytree(maps, tmp_path / "holes")
    for image_id in images.image_ids[:7]:
        (holes / f"{image_id}.png").unlink()
    command = ["label" if step == "label" else "run", "--recipe", str(tiny_recipe)]
    command += ["--set", f"saliency.maps={holes}", "--output-dir", str(tmp_path / "out")]
    checkpoint = ["--checkpoint", str(finished[0] / "round_1" / "model")]
    command += {"dry-run": ["--dry-run"], "run": []}.get(step, checkpoint)
    assert main(command) == 1
    printed = "".join(capsys.readouterr())
    assert "7 of 12 images have no saliency map" in printed and "and 2 more" in printed
    assert not (tmp_path / "out").exists()


def test_the_section_needs_maps(tiny_recipe):
    with pytest.raises(UserError, match="saliency: got neither maps nor column"):
        load_recipe(str(tiny_recipe), {"saliency": {}})
    with pytest.raises(UserError, match=r"saliency\.salient: got 256, expected 1 to 255"):
        load_recipe(str(tiny_recipe), {"saliency": {"maps": "a", "salient": 256}})
