"""The recipe for a plain transformer: it builds, its refinement has what it asks for, and own-data is as it was."""

from sbce_hf.config import load_recipe
from sbce_hf.hub.licenses import License, license_of_run
from sbce_hf.runs.stages import check_refinements, stages_of
from sbce_hf.training.classifier import create_classifier


def test_the_trunk_fits_its_refinement():
    config = load_recipe("own-data-vit", {"data": {"data_dir": "photos"}})
    classifier = create_classifier(config.model, ("ant", "bee"), "random", 0)
    check_refinements(config, classifier)
    assert [stage.name for stage in stages_of(config)] == ["bce", "round_1", "round_2", "affinity"]
    assert license_of_run(config, "classifier") == License("apache-2.0")
    trained = [parameter.requires_grad for parameter in classifier.base_model.parameters()]
    assert not trained[0] and trained[-1]


def test_own_data_keeps_the_trunk_that_was_measured():
    config = load_recipe("own-data", {"data": {"data_dir": "photos"}})
    assert config.model["trunk"] == "resnet50" and config.affinity is None
