"""A push replaces nothing of somebody else's without a word."""

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from test_publish import folder, publish, stored  # noqa: F401

from sbce_hf.errors import UserError
from sbce_hf.hub.ownership import KEPT_BELOW, MANIFEST, join_card, split_card
from sbce_hf.hub.publish import publish_folder


def theirs(path, content, repo_type="model", name="user/model"):
    HfApi().upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=name, repo_type=repo_type)


def test_what_somebody_else_has_put_there_is_named_and_stays(hub, folder):  # noqa: F811
    HfApi().create_repo("user/model")
    theirs("README.md", b"# My own words\n")
    theirs("modeling_own.py", b"print()\n")
    theirs("notes.txt", b"mine")
    theirs("sub/config.json", b'{"a": 1}')
    before = stored(hub)
    with pytest.raises(
        UserError, match=r"since: README.md, modeling_own.py, sub/config.json. Choose another"
    ) as error:
        publish(folder, delete_patterns=["modeling_*.py", "*.safetensors"])
    assert "--overwrite" in str(error.value) and stored(hub) == before
    publish(folder, delete_patterns=["modeling_*.py", "*.safetensors"], overwrite=True)
    after = stored(hub)
    assert after["notes.txt"] == b"mine" and "modeling_own.py" not in after and after["sub/config.json"] == b"{}"


METADATA_ALONE = ("---\nlicense: mit\nextra_gated_prompt: You agree to much.\n---\n", "---\nlicense: mit\n---")
WORDS = (
    "---\n# My page\n\nWords that took a day.\n",
    "---\nlicense: mit\n---\n# My page\n",
)


# Metadata alone are what the Hub itself gives a new Space.
@pytest.mark.parametrize(
    ("repo_type", "card"),
    [*(("model", card) for card in METADATA_ALONE + WORDS), *(("space", card) for card in WORDS)],
)
def test_a_card_of_somebodys_own_is_named_and_stays(hub, folder, card, repo_type):  # noqa: F811
    HfApi().create_repo("user/own", repo_type=repo_type, space_sdk="gradio" if repo_type == "space" else None)
    theirs("README.md", card.encode(), repo_type, "user/own")
    with pytest.raises(UserError, match="since: README.md. "):
        publish_folder(folder, "user/own", repo_type, message="Publish")
    where = {"repo_id": "user/own", "repo_type": repo_type, "force_download": True}
    assert Path(hf_hub_download(filename="README.md", **where)).read_text() == card


def test_an_empty_card_is_no_loss(hub, folder):  # noqa: F811
    HfApi().create_repo("user/model")
    theirs("README.md", b"\n")
    publish(folder)
    assert b"# A model" in stored(hub)["README.md"]


def test_what_a_push_has_written_the_next_one_replaces(hub, folder):  # noqa: F811
    publish(folder)
    (folder / "more.safetensors").unlink()
    (folder / "sub" / "config.json").write_text("[1]")
    publish(folder, delete_patterns=["*.safetensors"])
    assert "more.safetensors" not in stored(hub) and stored(hub)["sub/config.json"] == b"[1]"
    known = json.loads(stored(hub)[MANIFEST])["files"]
    assert set(known) == {"README.md", "model.safetensors", "sub/config.json"}


def test_what_was_changed_since_is_theirs(hub, folder):  # noqa: F811
    publish(folder)
    theirs("sub/config.json", b'{"tuned": true}')
    with pytest.raises(UserError, match="changed since: sub/config.json. "):
        (folder / "sub" / "config.json").write_text("[1]")
        publish(folder)
    # What they have made the same is no loss.
    theirs("sub/config.json", b"[1]")
    publish(folder)


def test_a_section_below_the_mark_survives(hub, folder):  # noqa: F811
    publish(folder)
    card = stored(hub)["README.md"].decode()
    assert card.count(KEPT_BELOW) == 1
    theirs("README.md", f"{card}\n## My notes\n\nWords.\n".encode())
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Another model\n")
    publish(folder)
    card = stored(hub)["README.md"].decode()
    assert "# Another model" in card and card.endswith("\n## My notes\n\nWords.\n") and card.count(KEPT_BELOW) == 1
    # Above it, words and metadata are the program's; whoever changes them is asked.
    for changed in (card.replace("# Another model", "# My model"), card.replace("license: mit", "license: gpl")):
        theirs("README.md", changed.encode())
        with pytest.raises(UserError, match="since: README.md. "):
            publish(folder)
        theirs("README.md", card.encode())


def test_a_new_space_has_a_card_of_the_hubs(hub, folder):  # noqa: F811
    HfApi().create_repo("user/space", repo_type="space", space_sdk="gradio")
    said = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
    theirs("README.md", f"---\ntitle: Space\nsdk: gradio\n---\n\n{said}\n".encode(), "space", "user/space")
    publish_folder(folder, "user/space", "space", message="Publish", space_sdk="gradio")
    theirs("app.py", b"import gradio\n", "space", "user/space")
    (folder / "app.py").write_text("print()\n")
    with pytest.raises(UserError, match="since: app.py. "):
        publish_folder(folder, "user/space", "space", message="Publish", space_sdk="gradio")


@pytest.mark.parametrize(
    "manifest",
    [b"[]", b"{", b"\xff", b'{"files": 3}', b'{"files": {"README.md": 3}}', b'{"files":' + b"[" * 200_000],
    ids=range(6),
)
def test_a_list_that_somebody_has_edited_claims_nothing(hub, folder, manifest):  # noqa: F811
    publish(folder)
    theirs(MANIFEST, manifest)
    (folder / "sub" / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="since: sub/config.json"):
        publish(folder)


def test_pull_requests_are_asked_about_as_well(hub, folder):  # noqa: F811
    HfApi().create_repo("user/model")
    theirs("README.md", b"# Mine\n")
    with pytest.raises(UserError, match="since: README.md"):
        publish(folder, create_pr=True)


def test_cards_are_parted_and_joined():
    assert split_card("# a\n") == ("# a", None)
    assert split_card(join_card("# a", "")) == ("# a", "")
    assert split_card(join_card("# a\n", "b\n\nc")) == ("# a", "b\n\nc")
