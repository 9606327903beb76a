import time

import pytest

from sbce_hf.config import load_recipe, parse_override
from sbce_hf.config.yaml_text import MAX_DEPTH, MAX_ENTRIES, read_yaml
from sbce_hf.errors import UserError


def refused(text, message):
    started = time.perf_counter()
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(text, "own.yaml")
    assert time.perf_counter() - started < 5
    assert str(caught.value).startswith("own.yaml: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_anchors_merge_keys_and_nesting_of_recipes_are_read():
    text = "a: &stage {lr: 1}\nb: {<<: *stage, epochs: 2}\nc: *stage\nd: [[1, 2], {e: f}]"
    assert read_yaml(text, "") == {
        "a": {"lr": 1},
        "b": {"lr": 1, "epochs": 2},
        "c": {"lr": 1},
        "d": [[1, 2], {"e": "f"}],
    }
    deep = MAX_DEPTH - 1
    assert read_yaml("[" * deep + "]" * deep, "") is not None


def test_only_true_and_false_are_truth_values():
    text = "[true, False, yes, no, on, OFF, y, n, 'true', ~]"
    assert read_yaml(text, "") == [True, False, "yes", "no", "on", "OFF", "y", "n", "true", None]
    assert load_recipe("quickstart", parse_override("bce.mixed_precision=no")).bce.mixed_precision == "no"
    assert parse_override("data.classes=[on, no]") == {"data": {"classes": ["on", "no"]}}


@pytest.mark.parametrize("sign", [",", "|", "-", " ", "&", ";"])
def test_a_sign_by_itself_is_itself(sign):
    assert parse_override(f"data.separator={sign}") == {"data": {"separator": sign}}
    assert parse_override("labelling.crf=~") == {"labelling": {"crf": None}}


def test_numbers_are_decimal():
    text = "[0, -3, +1, 0x1F, 1.5, .5, 1.0e-3, .inf, 014, 01, 1:30, 1_000]"
    assert read_yaml(text, "") == [0, -3, 1, 31, 1.5, 0.5, 0.001, float("inf"), "014", "01", "1:30", "1_000"]
    with pytest.raises(UserError, match="shapes_images.*'014'"):
        load_recipe("quickstart", parse_override("data.shapes_images=014"))


def test_duplicate_keys_name_the_key_and_both_lines(tmp_path):
    refused("bce:\n  lr: 1\n  epochs: 2\n  lr: 3\n", "key 'lr' is given twice, in lines 2 and 4")
    path = tmp_path / "own.yaml"
    path.write_text("rounds: 1\nbce: {lr: 1}\nrounds: 2\n")
    with pytest.raises(UserError, match=r"own\.yaml: key 'rounds' is given twice, in lines 1 and 3"):
        load_recipe(str(path))
    with pytest.raises(UserError, match="--set .*key 'lr' is given twice"):
        parse_override("bce={lr: 1, lr: 2}")


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 5000])
@pytest.mark.parametrize(
    "text",
    [
        lambda depth: "[" * depth,
        lambda depth: "{a: " * depth,
        lambda depth: "\n".join(" " * level + "a:" for level in range(depth)),
    ],
    ids=["lists", "mappings", "blocks"],
)
def test_deep_nesting_is_one_line(text, depth):
    refused(text(depth), f"line [0-9]+: more than {MAX_DEPTH} levels deep")


def test_deep_set_is_one_line():
    with pytest.raises(UserError, match=f"more than {MAX_DEPTH} levels deep"):
        parse_override("model" + ".a" * 5000 + "=1")


def bomb(levels, first):
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("first", ["x", "{a: b}", '"' + "x" * 1_000_000 + '"'], ids=["text", "mapping", "long text"])
def test_alias_bombs_are_one_line(first):
    refused(bomb(30, first), f"more than {MAX_ENTRIES} entries")


def test_merge_bombs_are_one_line():
    merges = [f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}" for level in range(1, 30)]
    refused("\n".join(["a0: &a0 {k: v}", *merges]), f"more than {MAX_ENTRIES} entries")


def test_an_alias_of_itself_is_one_line():
    refused("a: &a [*a]", "an alias inside what it stands for")


@pytest.mark.parametrize("text", ["a: [", "a: 2026-13-45", "a: 1" + "0" * 5000, "a: !!python/object:os.system {}"])
def test_what_is_no_yaml_is_the_users_mistake(text):
    with pytest.raises(UserError, match=r"own\.yaml: not valid YAML"):
        read_yaml(text, "own.yaml")


def test_a_recipe_that_is_no_text(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match=r"own\.yaml: not valid YAML"):
        load_recipe(str(path))


@pytest.mark.parametrize("text", ["segmenter=3", "data=[1]", "bce=x", "=1", "rounds"])
def test_a_section_that_is_none_is_the_users_mistake(text):
    with pytest.raises(UserError):
        load_recipe("voc-animals", {**parse_override(text)})


def test_a_recipe_without_end_is_not_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    with path.open("wb") as file:
        file.truncate(2_000_000_000)
    with pytest.raises(UserError, match="recipe.yaml: has 2,000,000,000 bytes, expected at most"):
        load_recipe(str(path))


@pytest.mark.parametrize("section", ["!!set {a}", "[1, 2]", "text"])
def test_an_override_replaces_no_mistake(tmp_path, section):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"data: {section}\n")
    with pytest.raises(UserError, match="recipe.yaml.data: got .*expected a mapping of fields"):
        load_recipe(str(path), {"data": {"data_dir": "photos"}})
