import importlib.util
import json
import os
import shutil
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from PIL.ExifTags import Base
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from sbce_hf.cli import main
from sbce_hf.config import CrfConfig
from sbce_hf.demo.explain import explain, load_checkpoint
from sbce_hf.inference.classifier import label_images
from sbce_hf.labels.store import LabelStore
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification

gr = pytest.importorskip("gradio")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from sbce_hf.demo import uploads  # noqa: E402
from sbce_hf.demo.page import LAUNCH, build_demo  # noqa: E402
from sbce_hf.demo.pictures import example, outlined_heat_map, served_file  # noqa: E402
from sbce_hf.demo.uploads import read_photo  # noqa: E402

SPACE = Path(__file__).parent.parent.parent / "space"
CLASS_NAMES = ("kite", "lantern", "<b>cat</b>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("space")


@pytest.fixture(scope="module")
def classifier(folder):
    torch.manual_seed(0)
    names = dict(enumerate(CLASS_NAMES))
    config = SpatialBceConfig(trunk="test_resnet", id2label=names, embedding_dim=8, logit_scale_init=3.0)
    model = SpatialBceForImageClassification(config)
    with torch.no_grad():
        # Random weights alone give flat maps and no predicted class.
        model.class_maps.weight.mul_(3)
        model.threshold_head.weight.mul_(3)
    model.save_pretrained(folder / "classifier")
    return str(folder / "classifier")


@pytest.fixture(scope="module")
def segmenter(folder):
    torch.manual_seed(0)
    names = {0: "background", 1: "ant", 2: "bee"}
    sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1]}
    config = SegformerConfig(id2label=names, label2id={n: i for i, n in names.items()}, decoder_hidden_size=8, **sizes)
    SegformerForSemanticSegmentation(config).save_pretrained(folder / "segmenter")
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "segmenter")
    return str(folder / "segmenter")


@pytest.fixture(scope="module")
def photo(folder):
    picture, _ = example(CLASS_NAMES)
    picture.resize((100, 80)).save(folder / "photo.png")
    return str(folder / "photo.png")


@pytest.fixture(scope="module")
def client(classifier):
    page = build_demo(classifier)
    page.launch(prevent_thread_lock=True, quiet=True, **LAUNCH)
    yield Client(page.local_url, verbose=False)
    page.close()


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SBCE_CHECKPOINT", raising=False)
        spec.loader.exec_module(module)
    return module


def told(page):
    return "".join(block.value for block in page.blocks.values() if isinstance(block, gr.Markdown))


def test_page_shows_what_the_library_labels(client, classifier, photo):
    annotated, said, download, heat_maps, table = client.predict(
        handle_file(photo), ["kite", "lantern"], False, False, api_name="/label"
    )
    checkpoint = load_checkpoint(classifier)
    with Image.open(photo) as picture:
        found = explain(checkpoint, picture.convert("RGB"), ["kite", "lantern"], None)
    with Image.open(download["value"]) as image:
        assert image.mode == "P" and image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        assert np.array_equal(np.asarray(image), found.label_map)
    assert {part["label"] for part in annotated["annotations"]} <= set(CLASS_NAMES[:2])
    assert "100 x 80 pixels" in said
    rows = {row[0]: row[1:] for row in table["value"]["data"]}
    assert set(rows) == {"kite", "lantern"} and len(heat_maps["value"]) == 2
    for reading in found.readings:
        share = f"{100 * (found.label_map == reading.value).mean():.1f} %"
        assert rows[reading.name][1:] == [f"{reading.threshold:.3f}", f"{reading.probabilities.mean():.3f}", share]


def test_numbers_are_those_of_label_images(classifier, photo, tmp_path):
    from sbce_hf.data.photos import load_photos

    checkpoint = load_checkpoint(classifier)
    config = replace(checkpoint.config, known_classes="predicted", class_threshold=0.5, crf=CrfConfig(iterations=2))
    with Image.open(photo) as picture:
        found = explain(checkpoint, picture.convert("RGB"), None, config.crf)
    assert found.readings, "the random model should predict some class"
    assert all(reading.image_probability > 0.5 for reading in found.readings)
    images = load_photos([photo], CLASS_NAMES, strict=True)
    summary = label_images(checkpoint.model, images, config, output_dir=tmp_path, key="k")
    store = LabelStore(summary.directories[-1])
    (image_id,) = images.image_ids
    assert np.array_equal(store.read(image_id), found.label_map)
    record = store.record(image_id)
    by_class = sorted(found.readings, key=lambda reading: reading.value)
    assert record["classes"] == [reading.value - 1 for reading in by_class]
    assert record["thresholds"] == pytest.approx([reading.threshold for reading in by_class])
    assert record["mean_probability"] == pytest.approx([reading.mean_probability for reading in by_class])


def test_image_probabilities_are_the_models(classifier, photo):
    checkpoint = load_checkpoint(classifier, image_size=64)
    flat = replace(checkpoint, config=replace(checkpoint.config, flip=False))
    with Image.open(photo) as picture:
        found = explain(flat, picture.convert("RGB"), ["kite"], None)
        pixels = torch.from_numpy(np.array(picture.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)))
    with torch.no_grad():
        logits = checkpoint.model(checkpoint.preprocessing(pixels.permute(2, 0, 1))[None]).logits[0]
    expected = dict(zip(CLASS_NAMES, logits.sigmoid().tolist(), strict=True))
    assert found.image_probabilities == pytest.approx(expected, abs=1e-4)


def test_without_tags_all_is_background(client, photo):
    annotated, said, download, heat_maps, table = client.predict(
        handle_file(photo), [], False, True, api_name="/label"
    )
    assert annotated["annotations"] == [] and "background 100.0 %" in said
    assert heat_maps["visible"] is False and table["visible"] is False
    with Image.open(download["value"]) as image:
        assert not np.asarray(image).any()


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_label_map_of_a_large_photo_has_its_size(client, folder, orientation):
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    Image.effect_noise((1600, 900), 60).convert("RGB").save(folder / "large.jpg", exif=exif)
    _, said, download, *_ = client.predict(
        handle_file(folder / "large.jpg"), ["kite"], False, False, api_name="/label"
    )
    width, height = (1600, 900) if orientation == 1 else (900, 1600)
    assert f"the photo's {width} x {height} pixels" in said
    assert f"looked at has {' x '.join(str(round(side * 0.32)) for side in (width, height))}" in said
    with Image.open(download["value"]) as image:
        assert image.size == (width, height) and image.mode == "P"


@pytest.mark.parametrize("data", [b"no photo at all", None], ids=["no photo", "truncated"])
def test_unreadable_photo_is_told(client, folder, photo, data):
    path = folder / f"damaged{data is None}.png"
    path.write_bytes(Path(photo).read_bytes()[:2000] if data is None else data)
    with pytest.raises(AppError, match="damaged, or no photo"):
        client.predict(handle_file(path), ["kite"], False, False, api_name="/label")


def test_a_photo_of_too_many_pixels_is_not_decoded(client, folder, monkeypatch):
    # A phone's 48 megapixels pass; of one bit each, they make a small file.
    for size in ((8000, 6000), (8000, 6251)):
        Image.new("1", size).save(folder / f"{size[1]}.png")
    assert read_photo(folder / "6000.png")[0].size == (512, 384)
    decoded = []
    monkeypatch.setattr(uploads, "decode_image", lambda *source, **how: decoded.append(source))
    with pytest.raises(AppError, match="has 8000 x 6251 pixels; expected at most 50 megapixels. Make it smaller"):
        client.predict(handle_file(folder / "6251.png"), ["kite"], False, False, api_name="/label")
    # What an icon says of its size is not what the picture in it has, nor what a tile of a TIFF takes.
    for kind in ("ICO", "TIFF"):
        Image.effect_noise((200, 200), 60).save(folder / f"small.{kind}")
        with pytest.raises(AppError, match=f"of the format {kind}. Try a JPEG"):
            client.predict(handle_file(folder / f"small.{kind}"), ["kite"], False, False, api_name="/label")
    assert not decoded


def test_no_photo_is_told(client):
    with pytest.raises(AppError, match="no photo yet"):
        client.predict(None, ["kite"], False, False, api_name="/label")


def test_requests_at_once_do_not_disturb_each_other(client, photo):
    calls = [
        ([name], client.submit(handle_file(photo), [name], False, False, api_name="/label")) for name in CLASS_NAMES
    ]
    for names, job in calls + calls:
        table = job.result()[-1]
        assert [row[0] for row in table["value"]["data"]] == names


def test_a_served_file_is_whole_while_it_is_served_again(tmp_path):
    first = served_file(b"content", "a.png", str(tmp_path))
    number = os.stat(first).st_ino
    os.utime(first, (0, 0))
    assert served_file(b"content", "a.png", str(tmp_path)) == first
    assert os.stat(first).st_ino == number and os.stat(first).st_mtime > 0, "not written again, but not old either"
    assert served_file(b"other", "a.png", str(tmp_path)) != first


def test_segmenter_needs_no_tags(segmenter, photo):
    page = build_demo(segmenter)
    labels = [block.label for block in page.blocks.values() if hasattr(block, "label")]
    assert "Tags" not in labels and "Numbers" not in labels
    page.launch(prevent_thread_lock=True, quiet=True, **LAUNCH)
    try:
        annotated, _, download = Client(page.local_url, verbose=False).predict(
            handle_file(photo), True, api_name="/label"
        )
    finally:
        page.close()
    assert {part["label"] for part in annotated["annotations"]} <= {"ant", "bee"}
    with Image.open(download["value"]) as image:
        assert image.size == (100, 80) and np.asarray(image).max() <= 2


def test_outline_is_where_the_rule_changes(classifier):
    checkpoint = load_checkpoint(classifier)
    picture, _ = example(CLASS_NAMES)
    reading = explain(checkpoint, picture, ["kite"], None).readings[0]
    above = np.zeros((picture.height, picture.width), bool)
    above[:, 100:] = True
    painted = np.asarray(outlined_heat_map(picture, replace(reading, above=above)))
    white = (painted == 255).all(axis=2).mean(axis=0)
    assert white[99:101].tolist() == [1, 1] and white[:98].max() < 1 and white[102:].max() < 1


def test_class_names_are_no_markup(classifier):
    assert "<b>cat</b>" not in told(build_demo(classifier))


def test_example_is_drawn_with_the_checkpoints_things():
    assert example(("lantern", "cow"))[1] == ["lantern"]
    picture, tags = example(("cow",))
    assert tags == [] and picture.mode == "RGB"


def test_the_example_is_taken_by_a_click(client, segmenter):
    config = httpx.get(f"{client.src}config").json()
    (button,) = (block["id"] for block in config["components"] if block["props"].get("elem_id") == "example")
    (click,) = (one for one in config["dependencies"] if [button, "click"] in one["targets"])
    body = {"data": [], "fn_index": click["id"], "session_hash": "example"}
    assert httpx.post(f"{client.src}gradio_api/queue/join", json=body).is_success
    events = httpx.get(f"{client.src}gradio_api/queue/data", params={"session_hash": "example"}, timeout=60).text
    (done,) = (json.loads(line[6:]) for line in events.splitlines() if '"process_completed"' in line)
    picture, tags = done["output"]["data"]
    assert tags == ["kite", "lantern"]
    body = {"data": [{"path": picture["path"], "meta": {"_type": "gradio.FileData"}}, tags, False, False]}
    event = httpx.post(f"{client.src}gradio_api/call/label", json=body).json()["event_id"]
    assert "event: complete" in httpx.get(f"{client.src}gradio_api/call/label/{event}", timeout=60).text
    # No path in the settings of the other page, either.
    assert gr.Image().GRADIO_CACHE not in json.dumps(build_demo(segmenter).get_config_file(), default=str)


def test_app_says_what_is_missing(app, tmp_path, classifier):
    assert "SBCE_CHECKPOINT" in told(app.demo) and "not set" in told(app.demo)
    absent = told(app.page(str(tmp_path / "absent")))
    assert "cannot be loaded" in absent and "absent" in absent
    assert "kite" in told(app.page(classifier))


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{"),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: (folder / "config.json").write_text("[1, 2]"),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "nothing"}'),
        lambda folder: change(folder / "config.json", id2label=["a"]),
        lambda folder: change(folder / "config.json", embedding_dim="many"),
        lambda folder: change(folder / "config.json", trunk_kwargs={"pretrained": True}),
        lambda folder: (folder / "preprocessor_config.json").write_text("3"),
    ],
)
def test_app_shows_its_message_page_for_whatever_a_checkpoint_holds(app, classifier, tmp_path, damage):
    folder = shutil.copytree(classifier, tmp_path / "checkpoint")
    damage(folder)
    said = told(app.page(str(folder)))
    assert "cannot be loaded" in said and "No checkpoint to show" in said
    assert f"{tmp_path}/" not in said.split("restart the Space.")[1]


def test_command_line_errors_before_it_serves(tmp_path, capsys, classifier):
    other = tmp_path / "other"
    shutil.copytree(classifier, other)
    (other / "config.json").write_text('{"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}')
    for name, message in (
        (str(tmp_path / "absent"), "neither a folder"),
        (str(other), "ResNetForImageClassification"),
    ):
        assert main(["demo", "--checkpoint", name]) == 1
        assert message in capsys.readouterr().err


def test_space_folder_agrees_with_the_package():
    _, front, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["sdk"] == "gradio" and (SPACE / values["app_file"]).is_file() and values["license"] == "apache-2.0"
    project = tomllib.loads((SPACE.parent / "pyproject.toml").read_text())["project"]
    known = {*project["dependencies"], *project["optional-dependencies"]["space"]}
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} <= known


def test_in_a_browser(client, photo):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=chromium, args=flags.split())
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        tab.goto(client.src, wait_until="domcontentloaded")
        tab.click("#example")
        tab.wait_for_selector("#photo img")
        assert "kite" in tab.inner_text("#tags") and tab.evaluate(
            "document.querySelector('#example-picture img').naturalWidth"
        )
        tab.reload(wait_until="domcontentloaded")
        tab.set_input_files("#photo input[type=file]", photo)
        tab.wait_for_selector("#photo img")
        tab.click("#tags input")
        tab.click("ul[role=listbox] li[aria-label='kite']")
        tab.keyboard.press("Escape")
        tab.click("#run")
        tab.wait_for_selector("#heat-maps img")
        assert "kite" in tab.inner_text("#numbers")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()


def test_neither_settings_nor_errors_show_a_path_of_the_server(client, folder, photo):
    root = client.src.rstrip("/")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    said = []
    for path in ("config", "gradio_api/info", "gradio_api/file=/etc/passwd", "no-such-page", ""):
        said.append(httpx.get(f"{root}/{path}").text)
    assert "Label maps from image tags" in said[0] and "root" not in said[2]
    # Nor the example's; whoever has sent a photo, or takes the example, is told the name under which it lies.
    for text in said:
        assert gr.Image().GRADIO_CACHE not in text and tempfile.gettempdir() not in text
    assert "Label maps from image tags" in said[-1]
    for tags in (["kite"], ["no such class"], [3]):
        for picture in (handle_file(folder / "damaged.jpg"), handle_file(photo), None):
            try:
                client.predict(picture, tags, False, False, api_name="/label")
            except AppError as error:
                said.append(str(error))
    marked = {"path": "pyproject.toml", "meta": {"_type": "gradio.FileData"}}
    bodies = [{"data": [picture, ["kite"], False, False]} for picture in ({"path": "/etc/passwd"}, marked)]
    for body in ({}, {"data": None}, *bodies):
        answer = httpx.post(f"{root}/gradio_api/call/label", json=body)
        said.append(answer.text)
        if answer.is_success:
            event = answer.json()["event_id"]
            said.append(httpx.get(f"{root}/gradio_api/call/label/{event}", timeout=60).text)
    assert len(said) > 8
    for place in (str(folder.parent), str(SPACE.parent), str(Path.home()), os.path.dirname(gr.__file__), "Traceback"):
        for text in said:
            assert place not in text, (place, text[:500])


def test_no_file_of_the_server_is_read_for_a_visitor(client, photo, tmp_path):
    private, pipe = tmp_path / "private.png", tmp_path / "pipe"
    Image.open(photo).save(private)
    os.mkfifo(pipe)
    linked = Path(gr.Image().GRADIO_CACHE) / "linked.png"
    linked.parent.mkdir(parents=True, exist_ok=True)
    linked.symlink_to(private)
    root, answered = client.src.rstrip("/"), 0
    for path in (private, pipe, linked, "/dev/zero", tmp_path):
        for extra in ({}, {"meta": {"_type": "other"}}, {"url": f"file://{private}"}):
            body = {"data": [{"path": str(path), **extra}, ["kite"], False, False]}
            answer = httpx.post(f"{root}/gradio_api/call/label", json=body)
            if answer.is_success:
                answered += 1
                event = answer.json()["event_id"]
                told_so = httpx.get(f"{root}/gradio_api/call/label/{event}", timeout=60).text
                assert "event: error" in told_so and "photo.png" not in told_so, (path, extra)
    linked.unlink()
    assert answered >= 10
    # An upload is what the page is for.
    assert client.predict(handle_file(photo), ["kite"], False, False, api_name="/label")
