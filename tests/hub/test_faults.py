"""A fault at each request of each push and download: nothing is half published, and nothing ends in a traceback."""

import os
import re
import shutil
from itertools import product

import numpy as np
import pytest
from huggingface_hub import HfApi, close_session, constants
from tiny_run import write_run

from sbce_hf.cli import main
from sbce_hf.cli.mistakes import told_in_one_line
from sbce_hf.labels.hub_store import HubLabelMaps
from sbce_hf.labels.store import LabelStore
from sbce_hf.references import local_checkpoint

FAULTS = {
    **{str(status): {"status": status} for status in (401, 403, 404, 409, 412, 429, 500, 503)},
    "lost before": {"cut": "request"},
    "lost after": {"cut": "response"},
    "cut body": {"cut": "response", "after": 20},
    "slow": {"delay": 0.05},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_run(folder / "run")
    store = LabelStore.create(folder / "labels", ("ant", "bee"), key="k", num_images=3)
    for name in ("a", "b", "c"):
        record = {"classes": [0], "thresholds": [0.5], "proportions": [0.5]}
        store.write(name, np.eye(12, dtype=np.uint8), record)
    store.mark_complete()
    return folder


def fresh(hub):
    """An empty Hub, of which the client remembers nothing."""
    hub.reset()
    close_session()
    HfApi()._whoami_cache.clear()
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)


def pushes(sources):
    return {
        "model": (["push", "model", str(sources / "run"), "user/own"], ("model", "user/own")),
        "labels": (["push", "labels", str(sources / "labels"), "user/own"], ("dataset", "user/own")),
        "space": (["push", "space", "user/own", "--checkpoint", "user/model"], ("space", "user/own")),
    }


def published(hub, where):
    repository = hub.repositories.get(where)
    if repository is None:
        return {}
    found = {name: content for name, content in repository.files().items() if name != ".gitattributes"}
    # The Hub itself gives a new Space a card, of which the package's says more.
    made = where[0] == "space" and found.keys() == {"README.md"} and b"sbce" not in found["README.md"]
    return {} if made else found


# The whole matrix takes eight minutes: SBCE_ALL_FAULTS=1 pytest tests/hub/test_faults.py. What a push does before and
# after its files is the same for all kinds, and so these stand for it otherwise.
ALL = "SBCE_ALL_FAULTS" in os.environ
PUSHES = [("model", "409"), ("labels", "lost after"), ("space", "503")]
DOWNLOADS = [("model", "404"), ("model", "cut body"), ("labels", "503")]


@pytest.mark.parametrize(("kind", "fault"), list(product(["model", "labels", "space"], FAULTS)) if ALL else PUSHES)
def test_a_push_is_whole_or_not_there(hub, sources, kind, fault, capsys):
    command, where = pushes(sources)[kind]
    fresh(hub)
    HfApi().create_repo("user/model")
    before = len(hub.requests)
    assert main(command) == 0
    whole, count = published(hub, where), len(hub.requests) - before
    assert len(whole) >= 3 and count >= 5
    for number in range(1, count + 1):
        fresh(hub)
        HfApi().create_repo("user/model")
        hub.fail(at=number, **FAULTS[fault])
        capsys.readouterr()
        # What is no mistake of the user's or the Hub's would be raised here.
        status = main(command)
        said, found = capsys.readouterr().err, published(hub, where)
        assert found.keys() in (set(), whole.keys()), (number, said)
        if status == 0:
            assert found.keys() == whole.keys(), number
        else:
            # Progress bars share the stream.
            lines = re.findall("sbce: error: .*", said)
            assert len(lines) == 1 and "user/" in lines[0], (number, said)
        hub.heal()
        assert main(command) == 0, (number, capsys.readouterr().err)
        assert published(hub, where).keys() == whole.keys()


@pytest.mark.parametrize(("kind", "fault"), list(product(["model", "labels"], FAULTS)) if ALL else DOWNLOADS)
def test_a_download_is_right_or_told(hub, sources, kind, fault):
    fresh(hub)
    command, where = pushes(sources)[kind]
    assert main(command) == 0
    whole = published(hub, where)

    def read():
        if kind == "model":
            folder = local_checkpoint("user/own")
            return {name: (folder / name).read_bytes() for name in whole if name.endswith((".json", ".safetensors"))}
        labels = HubLabelMaps("user/own")
        return {name: labels.read(name).tobytes() for name in labels.proportions()[0]}

    before = len(hub.requests)
    expected, count = read(), len(hub.requests) - before
    assert expected and count >= 2
    for number in range(1, count + 1):
        close_session()
        shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
        hub.fail(at=number, **FAULTS[fault])
        try:
            assert read() == expected
        except Exception as error:
            line = told_in_one_line(error)
            assert line is not None and "user/own" in line, (number, repr(error))
        hub.heal()
        assert read() == expected
