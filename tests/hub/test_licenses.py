"""The licence of a trunk's weights on the card of the model that was made from them."""

import json

import pytest
import yaml
from tiny_run import write_run

from sbce_hf.cli import main
from sbce_hf.config import RunConfig, from_mapping
from sbce_hf.errors import UserError
from sbce_hf.hub.licenses import License, chosen_license, license_of_run, trunk_license
from sbce_hf.hub.models import find_model, render_model_folder

DINOV3 = License("other", "dinov3-license", "https://ai.meta.com/resources/models-and-libraries/dinov3-license")


@pytest.mark.parametrize(
    ("trunk", "weights", "expected"),
    [
        ("vit_small_patch16_224.augreg_in21k", "pretrained", License("apache-2.0")),
        ("vit_small_patch14_dinov2.lvd142m", "pretrained", License("apache-2.0")),
        ("vit_small_patch16_dinov3.lvd1689m", "pretrained", DINOV3),
        # The weights that timm takes where nobody names any.
        ("vit_small_patch16_dinov3", "pretrained", DINOV3),
        ("resnet50", "pretrained", License("apache-2.0")),
        ("resnet50.tv_in1k", "pretrained", License("bsd-3-clause")),
        ("convnextv2_atto.fcmae", "pretrained", License("cc-by-nc-4.0")),
        ("mobilevit_s.cvnets_in1k", "pretrained",
         License("other", "cvnets-license", "https://huggingface.co/timm/mobilevit_s.cvnets_in1k")),
        ("vit_small_patch14_dinov2.lvd142m", "random", None),
        # Of a file only the trunk's name is known.
        ("vit_small_patch14_dinov2.lvd142m", "some.safetensors", License("apache-2.0")),
        ("vit_small_patch16_dinov3", "some.safetensors", DINOV3),
        ("resnet50", "some.safetensors", None),
        ("resnet38", "some.safetensors", None),
        ("dla60_res2net.in1k", "pretrained", None),
        ("no_such_network", "pretrained", None),
        ("hf:facebook/dinov3-vits16-pretrain-lvd1689m", "pretrained", DINOV3),
        ("hf:dinov3_vit", "some.safetensors", DINOV3),
        ("hf:facebook/dinov2-small", "pretrained", License("apache-2.0")),
        ("hf:somebody/backbone", "pretrained", None),
    ],
)  # fmt: skip
def test_terms_are_timm_s(trunk, weights, expected):
    assert trunk_license(trunk, weights) == expected


def test_the_publisher_decides_where_the_terms_let_him():
    assert chosen_license(None, None) is None and chosen_license("mit", None) == License("mit")
    apache = License("apache-2.0")
    assert chosen_license(None, apache) == apache and chosen_license("mit", apache) == License("mit")
    for given in (None, "other", "dinov3-license"):
        assert chosen_license(given, DINOV3) == DINOV3
    with pytest.raises(
        UserError, match=r"--license: got mit, but .* under dinov3-license \(https.*leave --license out"
    ):
        chosen_license("mit", DINOV3)
    with pytest.raises(UserError, match="got apache-2.0, but .* under cc-by-nc-4.0, which goes"):
        chosen_license("apache-2.0", License("cc-by-nc-4.0"))


def test_a_segmenter_has_its_own_trunk_or_the_classifier_s():
    def found(kind, **segmenter):
        values = {"model": {"trunk": "vit_small_patch16_dinov3"}, "segmenter": segmenter or None}
        return license_of_run(from_mapping(RunConfig, values), kind)

    own = {"weights": "pretrained", "model": {"trunk": "resnet50.tv_in1k"}}
    assert found("classifier", **own) == found("segmenter", weights="classifier") == DINOV3
    assert found("segmenter", **own) == License("bsd-3-clause")
    assert found("segmenter", weights="random") is None
    assert found("segmenter", architecture="segformer", checkpoint="somebody/segformer") is None


@pytest.fixture
def run_dir(tmp_path):
    """A run whose recipe names a trunk of DINOv3."""
    folder = write_run(tmp_path / "run")
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values |= {"model": {"trunk": "vit_small_patch16_dinov3.lvd1689m"}, "trunk_weights": "pretrained"}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_the_card_has_the_licence_and_its_link(run_dir, tmp_path):
    for part in ("classifier", "segmenter"):
        (tmp_path / part).mkdir()
        render_model_folder(find_model(run_dir, part), "user/model", tmp_path / part)
        card = (tmp_path / part / "README.md").read_text()
        values = yaml.safe_load(card.split("---\n")[1])
        assert (values["license"], values["license_name"]) == ("other", "dinov3-license")
        assert values["license_link"] == DINOV3.link
        assert f"they came under dinov3-license (<{DINOV3.link}>), **which goes with what is made from them**" in card
        assert f"- These weights: dinov3-license (<{DINOV3.link}>)." in card


def test_another_licence_is_refused_before_anything_is_sent(run_dir, capsys):
    assert main(["push", "model", str(run_dir), "user/model", "--dry-run", "--license", "mit"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "--license: got mit" in printed.err and "would push" not in printed.out
    assert main(["push", "model", str(run_dir), "user/model", "--dry-run", "--license", "other"]) == 0


def test_a_model_outside_of_a_run_is_known_by_its_trunk_s_name(run_dir, tmp_path):
    config = run_dir / "round_1" / "model" / "config.json"
    values = json.loads(config.read_text())
    for trunk, expected in (
        ("vit_small_patch16_dinov3.lvd1689m", "other"),
        ("test_resnet", "unknown"),
        (3, "unknown"),
    ):
        config.write_text(json.dumps({**values, "trunk": trunk}))
        folder = tmp_path / str(trunk)
        folder.mkdir()
        render_model_folder(find_model_folder(config.parent, tmp_path), "user/model", folder)
        card = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
        assert card["license"] == expected


def find_model_folder(model_dir, tmp_path):
    """The same model, as one that lies anywhere."""
    import shutil

    target = tmp_path / "anywhere"
    shutil.rmtree(target, ignore_errors=True)
    return find_model(shutil.copytree(model_dir, target))
