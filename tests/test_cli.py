import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sbce_hf.cli import _parser, main
from sbce_hf.cli.common import config_from
from sbce_hf.cli.run import run_dir_of

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def stages(tiny_recipe, tmp_path_factory):
    """The single steps one after the other, as a user would give them."""
    folder = tmp_path_factory.mktemp("stages")
    recipe = ["--recipe", str(tiny_recipe)]
    assert main(["train-classifier", *recipe, "--kind", "bce", "--output-dir", str(folder / "bce")]) == 0
    checkpoint = ["--checkpoint", str(folder / "bce" / "model")]
    fixed = ["--set", "labelling.rule=fixed"]
    assert main(["label", *recipe, *checkpoint, *fixed, "--output-dir", str(folder / "labels")]) == 0
    labels = ["--labels", str(folder / "labels" / "fixed_crf")]
    spatial = ["train-classifier", *recipe, "--kind", "spatial", *checkpoint, *labels]
    assert main([*spatial, "--output-dir", str(folder / "round")]) == 0
    return folder, recipe, labels


def test_single_steps(stages):
    folder, _, _ = stages
    assert (folder / "round" / "model" / "model.safetensors").is_file()
    with Image.open(next((folder / "labels" / "fixed_crf" / "label_maps").glob("*.png"))) as image:
        assert image.mode == "P" and image.getpalette()[3:6] == [128, 0, 0]


def test_evaluate_prints_and_writes_scores(stages, capsys, tmp_path):
    _, recipe, labels = stages
    assert main(["evaluate", *recipe, *labels, "--output", str(tmp_path / "scores.json")]) == 0
    printed = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert f"{100 * scores['mean_iou']:.1f}" in printed and "over 12 images" in printed
    assert list(scores["per_class_iou"])[0] == "background"


def test_spatial_needs_labels(tiny_recipe, tmp_path, capsys):
    arguments = ["train-classifier", "--recipe", str(tiny_recipe), "--kind", "spatial", "--output-dir", str(tmp_path)]
    assert main(arguments) == 1
    assert "--labels: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "nothing"], "built-in recipes"),
        (["--recipe", "quickstart", "--set", "bce.epoch=3"], "did you mean 'epochs'"),
        (["--recipe", "quickstart", "--set", "model.trnk=resnet18"], "trunk"),
        (["--recipe", "quickstart", "--set", "model.trunk=resnet9000"], "timm"),
        (["--recipe", "quickstart", "--trunk-weights", "none.safetensors"], "no file none.safetensors"),
        (["--recipe", "own-data", "--data-dir", "no-such-folder"], "no-such-folder"),
        (["--recipe", "voc-animals"], "--data-dir"),
        (["--recipe", "quickstart", "--set", "data.classes=[kite, unicorn]"], "unicorn"),
    ],
)
def test_mistakes_are_errors_before_anything_starts(arguments, message, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert main(["run", *arguments, "--output-dir", str(run_dir)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sbce: error:") and message in error
    assert not run_dir.exists()


@pytest.mark.parametrize(("given", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(given, expected):
    """OpenMP reads the variable as torch is loaded, so it has to be set by then."""
    program = """
import os, sys
from sbce_hf import cli
assert "torch" not in sys.modules
cli.main(["recipes"])
assert "torch" not in sys.modules
print(os.environ["OMP_WAIT_POLICY"])
"""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | given
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split()[-1] == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--recipe", "quickstart"], "runs/quickstart-seed0"),
        (["--recipe", "own-data", "--data-dir", "photos/"], "runs/own-data-photos-seed0"),
        (["--recipe", "own-data", "--data-dir", "a/b/../photos", "--seed", "3"], "runs/own-data-photos-seed3"),
        (["--recipe", "own-data", "--data-dir", "photos", "--seeds", "2"], "runs/own-data-photos"),
        (["--recipe", "own-data", "--set", "data={source: hub, dataset: user/birds@v1}"], "runs/own-data-birds-seed0"),
        (["--recipe", "own-data", "--data-dir", "photos", "--output-dir", "mine"], "mine"),
    ],
)
def test_default_run_directory_is_named_like_recipe_and_data(arguments, expected):
    options = _parser().parse_args(["run", *arguments])
    assert str(run_dir_of(options, config_from(options))) == expected


def test_run_directory_that_cannot_be_written(tiny_recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", "--recipe", str(tiny_recipe), "--output-dir", str(tmp_path / "file" / "run")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run", "train_classifier", "label", "train_segmenter", "predict"])
def test_scripts_are_the_commands(name):
    printed = subprocess.check_output([sys.executable, SCRIPTS / f"{name}.py", "--help"], text=True)
    assert f"usage: sbce {name.replace('_', '-')} " in printed


def test_unreadable_photo_is_skipped_listed_and_counted(tmp_path, tiny_recipe, capsys):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    rows = ["file;tags"]
    for index in range(6):
        Image.effect_noise((50, 40), 80).convert("RGB").save(data / "images" / f"{index}.jpg")
        rows.append(f'{index}.jpg;"{["cat", "dog", "cat; dog"][index % 3]}"')
    whole = (data / "images" / "5.jpg").read_bytes()
    (data / "images" / "5.jpg").write_bytes(whole[: len(whole) // 2])
    (data / "tags.csv").write_text("\n".join(rows))
    source = "data={source: folder, score_split: null}"
    arguments = ["run", "--recipe", str(tiny_recipe), "--set", source, "--data-dir", str(data)]
    arguments += ["--set", "spatial.min_iterations=6"]
    assert main([*arguments, "--output-dir", str(tmp_path / "run")]) == 0
    printed = re.sub(" +", " ", capsys.readouterr().out)
    assert "5 images, 1 skipped" in printed
    # Before anything long: how often each class is tagged, and what that is too little for.
    start = printed.index("cat 3 photos"), printed.index("look at: dog: only 3 photos")
    assert start[0] < start[1] < printed.index("label maps:")
    report = (tmp_path / "run" / "report.md").read_text()
    assert "cells are separated by semicolons" in report and "dog: only 3 photos" in report
    assert "5.jpg" in report and "no ground truth" in report.lower()
    assert main([*arguments, "--strict", "--output-dir", str(tmp_path / "strict")]) == 1
    assert "5.jpg" in capsys.readouterr().err


def test_stages_are_told_where_there_is_no_terminal(tiny_recipe, tmp_path, caplog, capsys):
    arguments = ["run", "--recipe", str(tiny_recipe), "--set", "rounds=1", "--output-dir", str(tmp_path)]
    arguments += ["--set", "spatial.targets=labels", "--set", "guard={}"]
    for said in (r"\d+\.\d s", "finished before"):
        caplog.clear()
        assert main(arguments) == 0
        told = [record.getMessage() for record in caplog.records if record.name == "sbce_hf.progress"]
        stages = [line for line in told if line.startswith("stage ")]
        for number, name in enumerate(("bce", "round_1", "leak_best_constant"), start=1):
            assert re.fullmatch(f"stage {number} of 3, {name}: {said}", stages[number - 1])
        # On a small screen as on a large one: no Markdown.
        printed = capsys.readouterr().out
        assert re.search(r"^Stage +Rule +Dense CRF", printed, re.MULTILINE) and "| Stage" not in printed


def test_interrupted_from_the_keyboard(tiny_recipe, tmp_path):
    arguments = ["run", "--recipe", str(tiny_recipe), "--set", "data.shapes_images=400", "--set", "bce.num_workers=2"]
    command = [sys.executable, "-m", "sbce_hf.cli", *arguments, "--output-dir", str(tmp_path / "run")]
    # As a terminal does it: to every process of the group, of which the workers are a part.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_foreground)
    while not (tmp_path / "run" / "bce" / "metrics.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 130
    assert told[-1] == "interrupted; continue with the same command" and not any("Traceback" in line for line in told)


def _foreground():
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_pipe_that_nobody_reads_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        command = [sys.executable, "-m", "sbce_hf.cli", "recipes"]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_current_folder_that_is_gone_is_told_in_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    # Python itself finds the package by an absolute path.
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    script = 'import os, sys; os.rmdir(os.getcwd()); from sbce_hf.cli import main; sys.exit(main(["recipes"]))'
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "gone", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "sbce: error: the current folder has been removed; change to one that is there, with cd\n"
