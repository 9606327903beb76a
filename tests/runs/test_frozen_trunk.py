"""A whole run whose trunk is not trained: its features are computed once, for all stages."""

import torch
from safetensors.torch import load_file

from sbce_hf.config import load_recipe
from sbce_hf.runs.run import run
from sbce_hf.training import features


def test_all_stages_share_one_trunk_and_its_features(tiny_recipe, tmp_path, monkeypatch):
    config = load_recipe(str(tiny_recipe), {"model": {"train_trunk": False}})
    looked = []
    look = features._look
    monkeypatch.setattr(features, "_look", lambda *arguments: looked.append(arguments[2]) or look(*arguments))
    summary = run(config, tmp_path / "run")
    # Twelve photos and their mirror images, once.
    assert sorted(index for group in looked for index in group) == sorted([*range(12)] * 2)
    assert len(list((tmp_path / "run" / "features").glob("*.float16"))) == 2
    first, last = (load_file(tmp_path / "run" / stage / "model" / "model.safetensors") for stage in ("bce", "round_2"))
    same = {name for name in first if torch.equal(first[name], last[name])}
    assert same == {name for name in first if ".trunk." in name}
    assert len(summary.scores) >= 6
    looked.clear()
    run(config, tmp_path / "run")
    assert not looked
