import json
import os
import re
import struct

import numpy as np
import pytest
from foreign_files import FLAGS, GOOD_PARAMS, HOSTILE_PARAMS, V1, V2, array, head, params

from sbce_hf.cli import main
from sbce_hf.importers.mxnet_params import is_params, read_params, resnet38_name
from sbce_hf.importers.trunks import import_trunk


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "weights.params"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("version", [V2, V1, 0], ids=["v2", "v1", "v0"])
def test_arrays_of_every_version_and_type_are_read(write, version):
    values = {name: (np.arange(6).reshape(1, 2, 3) - (0 if name == "uint8" else 3)).astype(name) for name in FLAGS}
    arrays = [array(value, version) for value in values.values()]
    path = write(params(arrays, [f"arg:{name}" for name in values]))
    assert is_params(path)
    read = read_params(path)
    for name, value in values.items():
        assert read[f"arg:{name}"].dtype == value.dtype
        np.testing.assert_array_equal(read[f"arg:{name}"], value)


def released_converter(name):
    """The released program's rules from MXNet's names to its own, written down independently of the importer."""
    kind, rest = name.split(":")
    unit, *words = rest.split("_")
    field = {"beta": "bias", "gamma": "weight", "mean": "running_mean", "var": "running_var"}.get(words[-1], "weight")
    if unit in ("conv1a", "bn7"):
        return f"{unit}.{field}"
    block = f"b{unit[-2]}" if unit[-1] == "a" else f"b{unit[-3]}_{unit[-1]}"
    assert re.fullmatch(r"(res|bn)\d(a|b\d)", unit) and kind == ("aux" if field.startswith("running") else "arg")
    return f"{block}.{'conv' if unit.startswith('res') else 'bn'}_{words[0]}.{field}"


@pytest.fixture(scope="module")
def layout(golden_dir):
    layout = json.loads((golden_dir / "resnet38_layout.json").read_text())
    heads = ("temperature", "fc_list", "threshold", "mask_layer_downsample")
    return {name: tuple(shape) for name, shape in layout.items() if name.split(".")[0] not in heads}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv1a.weight", "arg:conv1a_weight"),
        ("b2.conv_branch1.weight", "arg:res2a_branch1_weight"),
        ("b2_1.conv_branch2a.weight", "arg:res2b1_branch2a_weight"),
        ("b4_5.bn_branch2b1.running_var", "aux:bn4b5_branch2b1_moving_var"),
        ("b6.conv_branch2b2.weight", "arg:res6a_branch2b2_weight"),
        ("b7.bn_branch2b2.bias", "arg:bn7a_branch2b2_beta"),
        ("bn7.running_mean", "aux:bn7_moving_mean"),
    ],
)
def test_known_names(ours, theirs):
    assert resnet38_name(ours) == theirs


def test_names_are_those_that_the_released_program_converts(layout):
    names = [name for name in layout if not name.endswith("num_batches_tracked")]
    assert [released_converter(resnet38_name(name)) for name in names] == names


@pytest.fixture(scope="module")
def imagenet(layout, tmp_path_factory):
    """A file with every array of the network; each array's first value tells which it is, the rest is a hole of 0."""
    path = tmp_path_factory.mktemp("mxnet") / "resnet38.params"
    names = [name for name in layout if not name.endswith("num_batches_tracked")]
    with open(path, "wb") as file:
        file.write(struct.pack("<QQQ", 0x112, 0, len(names) + 1))
        for index, name in enumerate(names):
            file.write(head(layout[name]) + struct.pack("<f", index + 1))
            file.seek(4 * (int(np.prod(layout[name])) - 1), 1)
        file.write(array(np.zeros((1000, 3), dtype=np.float32)))
        file.write(struct.pack("<Q", len(names) + 1))
        for name in [*(resnet38_name(name) for name in names), "arg:linear1000_weight"]:
            file.write(struct.pack("<Q", len(name)) + name.encode())
    return path


def test_a_whole_file_becomes_a_trunk(imagenet, layout):
    state, report = import_trunk(imagenet)
    assert {name: tuple(value.shape) for name, value in state.items()} == layout
    names = [name for name in layout if not name.endswith("num_batches_tracked")]
    assert [state[name].flatten()[0].item() for name in names] == list(range(1, len(names) + 1))
    assert report.unused == ("arg:linear1000_weight",) and len(report.mapped) == len(names)
    assert all(name.endswith("num_batches_tracked") for name in report.missing)
    assert "arg:linear1000_weight" in str(report) and "counters, which stay 0" in str(report)


def test_a_missing_array_is_an_error(write):
    with pytest.raises(ValueError, match="lacks .* of trunk 'resnet38': arg:b|lacks .* arg:bn2a_branch2a_gamma"):
        import_trunk(write(params([array(np.zeros((64, 3, 3, 3), dtype=np.float32))], ["arg:conv1a_weight"])))


def test_another_trunk_is_an_error(write):
    with pytest.raises(ValueError, match="read for 'resnet38'; got trunk 'resnet50'"):
        import_trunk(write(params([array(np.zeros(3, dtype=np.float32))], ["arg:x"])), "resnet50")


# --- damaged and hostile files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", HOSTILE_PARAMS.values(), ids=HOSTILE_PARAMS)
def test_a_bad_file_is_an_error_that_names_the_byte(write, data):
    path = write(data)
    with pytest.raises(ValueError, match=r"weights.params: byte \d+: .*: got .*, expected "):
        read_params(path)


def test_the_error_tells_the_right_byte(write):
    data = params([head((3,), flag=9) + bytes(24)], ["arg:a"])
    at = data.index(struct.pack("<iii", 1, 0, 9)) + 8
    with pytest.raises(ValueError, match=f"byte {at}: type flag: got 9, expected 0 to 6"):
        read_params(write(data))


def test_good_is_good(write):
    assert list(read_params(write(GOOD_PARAMS))) == ["arg:a", "arg:b"]


@pytest.mark.parametrize("options", [[], ["--trunk", "resnet38"]])
def test_a_pipe_is_not_waited_for(tmp_path, capsys, options):
    os.mkfifo(tmp_path / "f.pth")
    assert main(["import", str(tmp_path / "f.pth"), "--output", str(tmp_path / "out"), *options]) == 1
    assert "f.pth: is a named pipe, expected a file" in capsys.readouterr().err
