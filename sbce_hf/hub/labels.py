"""A label store becomes a dataset on the Hub: one configuration of a repository that may hold several.

A configuration is a folder of parquet shards with an `info.json`, from which the card is made again at every push;
folders of other configurations are not touched.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml
from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, HfApi, constants, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from ..data.schema import TaggedImages, label_features
from ..errors import UserError
from ..evaluation.tables import markdown_table, percent
from ..files import write_atomic
from ..labels.hub_store import INFO, SPLIT
from ..labels.label_maps import require_all
from ..labels.store import LabelStore
from ..models.configuration_deeplab import voc_palette
from ..text import code_span, markdown
from .cards import TEMPLATES, UNKNOWN
from .errors import explained
from .label_info import LabelSetInfo, grown, read_info
from .label_shards import known_ids, write_shards
from .ownership import join_card, split_card
from .publish import check_repo_id


@dataclass(frozen=True)
class Existing:
    """What a repository holds before a push; nothing by default.

    Args:
        commit: that was looked at.
        card: its card.
        infos: of the configurations that [`render_label_folder`] has made.
        shards: files of the configuration that is appended to.
    """

    commit: str | None = None
    card: DatasetCard | None = None
    infos: Mapping[str, LabelSetInfo] = field(default_factory=dict)
    shards: Sequence[Path] = ()


@dataclass(frozen=True)
class RenderedLabels:
    """A folder that is ready to be published.

    Args:
        folder: all of its files are sent.
        config_name: of the configuration.
        info: of it.
        num_new: label maps that are written.
        parent_commit: what the folder was made on top of.
        replaced: patterns of the files that go.
    """

    folder: Path
    config_name: str
    info: LabelSetInfo
    num_new: int
    parent_commit: str | None
    replaced: tuple[str, ...]


def default_config_name(directory: Path) -> str:
    """A name from a store's place in a run, as in `round_2_paper`; elsewhere its folder's."""
    parts = directory.resolve().parts
    if len(parts) > 3 and parts[-2] == "labels":
        parts = (parts[-3], parts[-1])
    elif len(parts) > 4 and parts[-2] == "predictions":
        parts = ("segmenter", parts[-3], parts[-1])
    else:
        parts = parts[-1:]
    return re.sub(r"\W+", "_", "_".join(parts), flags=re.ASCII)


def render_label_folder(
    store: LabelStore,
    repo_id: str,
    folder: Path,
    *,
    config_name: str | None = None,
    append: bool = False,
    images: TaggedImages | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    revision: str | None = None,
    with_tag: bool = True,
) -> RenderedLabels:
    """Write everything that is published; equal stores and repositories give equal folders.

    Args:
        store: the label maps; one that is not complete gives what is there.
        repo_id: `user/name`, which is looked at for what it holds already, unless in offline mode.
        folder: an empty one.
        config_name: letters, digits and `_`; see [`default_config_name`].
        append: keep the configuration's label maps and add those of images that it lacks. Otherwise the configuration
            is replaced; shards that stay the same are not sent again.
        images: photos to publish with the label maps; by default none.
        license: of the label maps and photos, an id that the Hub knows.
        tags: more tags for the card.
        revision: branch that will be pushed to.
        with_tag: let the card name a git tag, made from the shards' hashes, for the publisher to set.

    Raises:
        ValueError: no label map, one of which the store has only the record, a bad name, a configuration that
            something else has made, or with `append` another label map of the same image, other classes, or photos
            here and none there.
        HubError: see [`explained`].
        OSError: a file cannot be read or written.
    """
    check_repo_id(repo_id)
    require_all(store)
    config_name = config_name or default_config_name(store.directory)
    if not re.fullmatch(r"\w+", config_name, re.ASCII):
        raise ValueError(f"--config {config_name!r}: expected letters, digits and _")
    existing = _look(repo_id, revision, config_name if append else None)
    before = existing.infos.get(config_name)
    _check_config(existing, config_name, repo_id)
    old = (
        before
        if append and before is not None
        else LabelSetInfo(list(store.class_names), with_images=images is not None)
    )
    if old.class_names != list(store.class_names) or old.with_images != (images is not None):
        raise ValueError(
            f"{repo_id}, configuration {config_name}: has classes {old.class_names} and {_photos(old.with_images)}, "
            f"the store {list(store.class_names)}, and it is pushed with {_photos(images is not None)}; make them the "
            "same, or push into another --config"
        )
    there, common = known_ids(store, existing.shards, f"{repo_id}, configuration {config_name}")
    new = sorted(store.done_ids() - common)
    if not new and not there:
        raise ValueError(f"label store {store.directory}: has no label map; label images first")
    shards = write_shards(store, new, folder / config_name, images, first=len(old.shards))
    size = sum((folder / config_name / name).stat().st_size for name in shards)
    info = grown(old, store, new, shards, size, holds_all=common == there)
    info = replace(info, skipped=sorted({*old.skipped, *store.skipped} - there - set(new)))
    if with_tag:
        content = json.dumps([info.shards, info.class_names]).encode()
        info = replace(info, tag=f"{config_name}-{hashlib.sha256(content).hexdigest()[:12]}")
    write_atomic(folder / config_name / INFO, json.dumps(asdict(info), indent=1, ensure_ascii=False) + "\n")
    infos = dict(sorted({**existing.infos, config_name: info}.items()))
    with nullcontext() if existing.card is None else _metadata(repo_id):
        card = _card(repo_id, infos, config_name, existing.card, license, tags)
    write_atomic(folder / "README.md", card)
    replaced = () if append else (f"{config_name}/*",)
    return RenderedLabels(folder, config_name, info, len(new), existing.commit, replaced)


def _photos(there: bool) -> str:
    return "photos" if there else "no photos"


def _look(repo_id: str, revision: str | None, appended_to: str | None) -> Existing:
    """What the repository holds; its shards only of the configuration that is appended to."""
    if constants.is_offline_mode():
        return Existing()
    # A dry run looks, too: what it writes depends on what is there. HF_HUB_OFFLINE=1 takes the repository for new.
    with explained(repo_id):
        try:
            commit = HfApi().repo_info(repo_id, repo_type="dataset", revision=revision).sha
        except RevisionNotFoundError:
            # The branch will start from the default one.
            commit = HfApi().repo_info(repo_id, repo_type="dataset").sha
        except RepositoryNotFoundError:
            return Existing()
        patterns = ["README.md", f"*/{INFO}", *([] if appended_to is None else [f"{appended_to}/*.parquet"])]
        folder = Path(snapshot_download(repo_id, repo_type="dataset", revision=commit, allow_patterns=patterns))
    card = None
    if (folder / "README.md").is_file():
        with _metadata(repo_id):
            card = DatasetCard.load(folder / "README.md")
    infos = {path.parent.name: read_info(path, repo_id) for path in sorted(folder.glob(f"*/{INFO}"))}
    names = infos[appended_to].shards if appended_to in infos else ()
    return Existing(commit, card, infos, [folder / str(appended_to) / name for name in names])


@contextmanager
def _metadata(repo_id: str) -> Iterator[None]:
    """Tell metadata of a card that are of other types than a card's; the library checks none."""
    try:
        yield
    except (TypeError, AttributeError, LookupError, ValueError, RecursionError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())
        raise UserError(
            f"{repo_id}: README.md: its metadata are not those of a dataset's card ({what}); correct them there"
        ) from error


def _check_config(existing: Existing, config_name: str, repo_id: str) -> None:
    configs = MetadataConfigs.from_dataset_card_data(existing.card.data) if existing.card else {}
    if config_name in configs and config_name not in existing.infos:
        raise ValueError(
            f"{repo_id}: its configuration {config_name} was not made by sbce push labels; choose another --config"
        )


def _card(
    repo_id: str,
    infos: Mapping[str, LabelSetInfo],
    config_name: str,
    card: DatasetCard | None,
    license: str | None,
    tags: Sequence[str],
) -> str:
    """The repository's `README.md`: metadata and what people wrote are kept, the rest is made from `infos`."""
    data = cast(DatasetCardData, card.data) if card else DatasetCardData()
    data["license"] = license or data.get("license") or UNKNOWN
    data["task_categories"] = sorted({*(data.get("task_categories") or ()), "image-segmentation"})
    wanted = ("sbce_hf", "weakly-supervised-semantic-segmentation", "pseudo-labels", *tags)
    data["tags"] = list(dict.fromkeys([*(data.get("tags") or ()), *wanted]))
    files = [{"split": SPLIT, "path": f"{config_name}/{SPLIT}-*.parquet"}]
    MetadataConfigs({config_name: {"data_files": files}}).to_dataset_card_data(data)
    DatasetInfosDict({config_name: _dataset_info(infos[config_name])}).to_dataset_card_data(data)
    above, below = split_card(card.text) if card else ("", None)
    written = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATES / "labels_card.md"),
        repo_id=repo_id,
        sets=[{"name": name, "info": info, **_tables(info)} for name, info in infos.items()],
        license=data["license"],
        percent=percent,
        markdown=markdown,
        code_span=code_span,
    )
    return join_card(str(written), (above if below is None else below).strip())


def _dataset_info(info: LabelSetInfo) -> DatasetInfo:
    features: Features = label_features(info.class_names, info.with_images)
    splits = SplitDict()
    splits.add(SplitInfo(SPLIT, num_bytes=info.num_bytes, num_examples=info.num_images))
    return DatasetInfo(features=features, splits=splits, download_size=info.num_bytes, dataset_size=info.num_bytes)


def _tables(info: LabelSetInfo) -> dict[str, Any]:
    colours = voc_palette(len(info.class_names) + 1)
    rows: list[tuple[Any, ...]] = [(0, "background", "#000000", "", "")]
    for c, name in enumerate(info.class_names):
        images, lost = info.images_per_class[c], info.lost_per_class[c]
        colour = "#{:02x}{:02x}{:02x}".format(*colours[c + 1])
        rows.append((c + 1, markdown(name), colour, images, f"{percent(lost / images)} %" if images else "-"))
    pairs = sum(info.images_per_class)
    return {
        "class_table": markdown_table(("Value", "Class", "Colour", "Images", "Lost"), rows, text_columns=3),
        "lost": f"{percent(sum(info.lost_per_class) / pairs)} %" if pairs else "-",
        "revision": f', revision="{info.tag}"' if info.tag else "",
    }
