import pytest

from sbce_hf.runs.provenance import without_folders, without_local_paths
from sbce_hf.runs.stages import find_run


@pytest.mark.parametrize(
    "text, public",
    [
        ("/home/me/My Photos", "My Photos"),
        ("/home/me/photos/", "photos"),
        ("~/weights/a.safetensors", "a.safetensors"),
        ("../photos/kitchen", "kitchen"),
        ("C:\\Users\\me\\photos", "photos"),
        ("{data_dir: /home/me/photos, x: 1}", "{data_dir: photos, x: 1}"),
        ("user/model", "user/model"),
        ("https://some.where/a/b", "https://some.where/a/b"),
        ("and/or 256/2 km/h", "and/or 256/2 km/h"),
    ],
)
def test_paths_are_reduced_to_their_last_part(text, public):
    assert without_local_paths(text) == public
    assert without_local_paths({"a": [text, 1, None]}) == {"a": [public, 1, None]}


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/me/models/x/config.json: not JSON", "config.json: not JSON"),
        ("no file '/tmp/a/c.json' or ~/d/e", "no file 'c.json' or e"),
        ("see https://example.invalid/a/b and a/b, 3/4", "see https://example.invalid/a/b and a/b, 3/4"),
        ("user/model: not found", "user/model: not found"),
    ],
)
def test_messages_for_strangers_show_no_folders(text, public):
    assert without_folders(text) == public


def test_relative_path_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "model").mkdir(parents=True)
    assert without_local_paths("user/model") == "model"
    assert without_local_paths({"data_dir": "my/photos"}) == {"data_dir": "photos"}


def test_command_stays_a_command():
    command = "sbce run --recipe ./mine.yaml --data-dir '/home/me/My Photos' --set 'data={data_dir: /a/b}' --seed 1"
    public = "sbce run --recipe mine.yaml --data-dir 'My Photos' --set 'data={data_dir: b}' --seed 1"
    assert without_local_paths({"command": command}) == {"command": public}


def test_only_a_runs_own_folders_belong_to_it(tmp_path):
    for name in ("config.yaml", "run.json"):
        (tmp_path / name).write_text("{}")
    for name in ("bce", "round_2", "segmenter/mask"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "stage.json").write_text("{}")
    assert find_run(tmp_path / "segmenter" / "mask" / "predictions" / "labels") == (tmp_path, "segmenter/mask")
    assert find_run(tmp_path / "round_2") == (tmp_path, "round_2")
    assert find_run(tmp_path / "bce" / "labels" / "fixed") == (tmp_path, "bce")
    for foreign in ("seg_mask", "pred/labels", "segmenter/other"):
        assert find_run(tmp_path / foreign) == (None, None), "somebody's own folder may come from masks"
