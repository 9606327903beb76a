"""A trained model becomes a folder that can be published: weights, configs, code, `run.json`, quality and card."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..config import RunConfig, from_mapping, to_mapping
from ..evaluation.quality_page import summary_table
from ..files import write_atomic
from ..models.configuration_checks import check_labels
from ..models.configuration_deeplab import voc_palette
from ..models.configuration_spatial_bce import SpatialBceConfig
from ..models.modeling_checkpoint import architectures_of, own_file, read_json
from ..runs.layout import CONFIG, NOTES, QUALITY_PAGE, REPORT, read_notes, require_own_files
from ..runs.provenance import without_local_paths
from ..runs.report import SHEET
from ..runs.report import THRESHOLDS as HISTOGRAM
from ..runs.scoring import read_quality, score_rows
from ..runs.stages import classifier_of, find_run, read_config, segmenter_of, stages_of
from ..text import markdown
from ..training.folder import read_summary
from .cards import ModelCardContext, render_model_card
from .licenses import License, chosen_license, license_of_run, trunk_license
from .publish import check_repo_id, folder_digest, folder_files

Kind = Literal["classifier", "segmenter"]

# What a push replaces even where the new model has no such file: another model's code or quality would be wrong there.
MODEL_FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "configuration_*.py",
    "modeling_*.py",
    "losses_*.py",
    "image_processing_*.py",
    "run.json",
    "quality.md",
    "figures/thresholds.png",
    "figures/sheet.png",
)
# Of this package, by the architecture that config.json names.
CLASSES = {
    "SpatialBceForImageClassification": ("SpatialBceForImageClassification", "SpatialBceImageProcessor"),
    "DeepLabForSemanticSegmentation": ("DeepLabForSemanticSegmentation", "DeepLabImageProcessor"),
}


@dataclass(frozen=True)
class ModelSource:
    """A trained model on disk.

    Args:
        model_dir: holds `config.json` and the weights.
        stage_dir: of its training; `None` for a model folder that lies anywhere.
        run_dir: of the run; `None` for a stage outside of one.
    """

    model_dir: Path
    stage_dir: Path | None = None
    run_dir: Path | None = None


@dataclass(frozen=True)
class RenderedModel:
    """A folder that is ready to be published.

    Args:
        folder: all of its files are sent.
        kind: of the model.
        tag: git tag that the card names; `None` without one.
        load: the lines of Python that load it.
    """

    folder: Path
    kind: Kind
    tag: str | None
    load: str


def find_model(path: str | Path, part: Kind | None = None) -> ModelSource:
    """Find the model in a run directory, a stage's directory, or a model folder.

    Args:
        path: one of these.
        part: of a run: the last round's classifier (default), or the segmenter.

    Raises:
        FileNotFoundError: there is none, or the run is not finished.
        ValueError: a part of something that is no run.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such folder; expected a run directory, a stage's directory or a model folder"
        )
    if (path / CONFIG).is_file():
        return _find_in_run(path, part or "classifier")
    if part is not None:
        raise ValueError(f"--part {part}: {path} is no run directory (it has no config.yaml), so it has no parts")
    if (path / "model" / "config.json").is_file():
        return _find_stage(path)
    if not (path / "config.json").is_file() or not list(path.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{path}: no config.yaml (a run), no model/ (a stage), no config.json with *.safetensors (a model); "
            "expected one of these"
        )
    if path.name == "model" and (path.parent / "summary.json").is_file():
        return _find_stage(path.parent)
    return ModelSource(path)


def _find_in_run(run_dir: Path, part: Kind) -> ModelSource:
    stages = stages_of(read_config(run_dir))
    stage = classifier_of(stages) if part == "classifier" else segmenter_of(stages)
    if stage is None:
        raise FileNotFoundError(f"{run_dir}: the run has no segmenter; its recipe has no such section")
    stage_dir = run_dir / stage.name
    # The report is a run's last file: a card without its scores would say that there are none.
    if not (stage_dir / "model" / "config.json").is_file() or not (run_dir / REPORT).is_file():
        raise FileNotFoundError(
            f"{run_dir}: the run is not finished; give its `sbce run` command again, or name one stage's directory"
        )
    return ModelSource(stage_dir / "model", stage_dir, run_dir)


def _find_stage(stage_dir: Path) -> ModelSource:
    run_dir, _ = find_run(stage_dir)
    return ModelSource(stage_dir / "model", stage_dir, run_dir)


def render_model_folder(
    source: ModelSource,
    repo_id: str,
    folder: Path,
    *,
    license: str | None = None,
    tags: Sequence[str] = (),
    contact_sheet: bool | None = None,
    with_tag: bool = True,
) -> RenderedModel:
    """Write everything that is published; equal sources give equal folders.

    Args:
        source: see [`find_model`].
        repo_id: `user/name`, which the card's examples load.
        folder: an empty one.
        license: of the weights, an id that the Hub knows; by default that of the trunk's weights, if it is known.
        tags: more tags for the card.
        contact_sheet: show photos of the training data. By default only those that the program has drawn itself.
        with_tag: let the card name a git tag, made from the folder's hash, for the publisher to set.

    Raises:
        ValueError: a model of another kind, a name that is no repository's, a licence that contradicts that of the
            trunk's weights, or a link out of the run or the stage.
        FileNotFoundError: a contact sheet that is asked for is not there, or a file of the model is missing.
    """
    check_repo_id(repo_id)
    if source.stage_dir is not None:
        require_own_files(source.run_dir or source.stage_dir, "put a copy of it there")
    context = _add_training(_copy_model(source.model_dir, folder, repo_id), source, folder)
    trunk = _trunk_license(context, source)
    context = replace(context, license=chosen_license(license, trunk), trunk_license=trunk, tags=tags)
    if _copy_sheet(source, context, folder, contact_sheet):
        context = replace(context, sheet=SHEET)
    context = replace(context, files=[name.as_posix() for name in folder_files(folder)])
    write_atomic(folder / "README.md", render_model_card(context))
    if with_tag:
        # A commit cannot know its own hash, but the folder can be hashed before its card names that.
        context = replace(context, tag=f"v{folder_digest(folder)}")
        write_atomic(folder / "README.md", render_model_card(context))
    return RenderedModel(folder, context.kind, context.tag, _first_python(folder / "README.md"))


def _copy_model(model_dir: Path, folder: Path, repo_id: str) -> ModelCardContext:
    for pattern in ("*.safetensors", "*.safetensors.index.json", "*.py"):
        for path in sorted(model_dir.glob(pattern)):
            shutil.copyfile(own_file(path), folder / path.name)
    where = model_dir / "config.json"
    config = read_json(own_file(where))
    architecture = (architectures_of(config, str(where)) or [""])[0]
    is_classifier = config.get("model_type") == SpatialBceConfig.model_type
    if not is_classifier and not architecture.endswith("ForSemanticSegmentation"):
        raise ValueError(
            f"{where}: got architecture {architecture!r}, expected "
            "SpatialBceForImageClassification or any ...ForSemanticSegmentation"
        )
    if not (model_dir / "preprocessor_config.json").is_file():
        raise FileNotFoundError(f"{model_dir}: no preprocessor_config.json; save the training's image processor there")
    custom_code = "auto_map" in config
    if custom_code and not list(folder.glob("*.py")):
        raise FileNotFoundError(
            f"{model_dir}: config.json names code (auto_map) that is not there; save the model again "
            "with save_pretrained"
        )
    check_labels(str(where), config.get("id2label", {}))
    names = [name for _, name in sorted((int(key), name) for key, name in config.get("id2label", {}).items())]
    labels = ["background", *names] if is_classifier else names
    if not config.get("palette"):
        config["palette"] = voc_palette(len(labels))
    config.pop("_name_or_path", None)
    _write_json(folder / "config.json", config)
    processor = read_json(own_file(model_dir / "preprocessor_config.json"))
    _write_json(folder / "preprocessor_config.json", processor)
    kind: Kind = "classifier" if is_classifier else "segmenter"
    return ModelCardContext(repo_id, kind, custom_code, CLASSES.get(architecture), labels, config["palette"])


def _add_training(context: ModelCardContext, source: ModelSource, folder: Path) -> ModelCardContext:
    """Add what is known of the training; copies what says so into the folder."""
    if source.stage_dir is None:
        return context
    stage, summary = source.stage_dir.resolve().name, read_summary(source.stage_dir) or {}
    context = replace(context, num_images=summary.get("images"))
    if source.run_dir is None:
        if summary:
            _write_json(folder / "run.json", without_local_paths({"stage": stage, "training": summary}))
        inputs = summary.get("settings", {}).get("inputs")
        return replace(context, refined=str(inputs.get("labels_note", "")) if isinstance(inputs, dict) else "")
    run_dir, config = source.run_dir, read_config(source.run_dir)
    notes = {"stage": stage, "seed": config.seed, **read_notes(run_dir), "config": to_mapping(config)}
    notes = without_local_paths(notes)
    _write_json(folder / NOTES, notes)
    for name in (QUALITY_PAGE, HISTOGRAM):
        if (run_dir / QUALITY_PAGE).is_file() and (run_dir / name).is_file():
            write_atomic(folder / name, (run_dir / name).read_bytes())
    stages = stages_of(config)
    made = {f"{run_dir.resolve()}/{one.name}": one for one in stages}[str(source.stage_dir.resolve())]
    # A segmenter's are those of the label maps that it was trained on.
    labelled = made.needs[0] if made.kind == "segmenter" else made
    qualities = [found[0] for one in stages if (found := read_quality(run_dir / one.name)) is not None]
    warnings = [
        f"- {markdown(line)}" for quality in qualities if quality.stage == labelled.name for line in quality.warnings
    ]
    scores, segmenters = score_rows(run_dir, stages)
    return replace(
        context,
        stage=stage,
        config=from_mapping(RunConfig, notes["config"], str(run_dir / CONFIG)),
        notes=notes,
        refined=made.note if made.kind == "segmenter" else "",
        leak=made.leak,
        scores=scores,
        segmenters=segmenters,
        label_free=summary_table(qualities).markdown() if qualities else "",
        warnings="\n".join(warnings) or "None.",
    )


def _trunk_license(context: ModelCardContext, source: ModelSource) -> License | None:
    """Of the run, or of a model outside of one by the trunk's name alone."""
    if source.run_dir is not None:
        return license_of_run(read_config(source.run_dir), context.kind)
    trunk = read_json(source.model_dir / "config.json").get("trunk")
    return trunk_license(trunk, "a file") if isinstance(trunk, str) else None


def _copy_sheet(source: ModelSource, context: ModelCardContext, folder: Path, wanted: bool | None) -> bool:
    drawn = context.config is not None and context.config.data.source == "shapes"
    if not (drawn if wanted is None else wanted):
        return False
    path = None if source.run_dir is None else source.run_dir / SHEET
    if path is not None and path.is_file():
        write_atomic(folder / SHEET, path.read_bytes())
        return True
    if wanted:
        raise FileNotFoundError(
            f"--contact-sheet: {source.model_dir} belongs to no finished run with {SHEET} "
            "(contact_images: 0 draws none)"
        )
    return False


def _first_python(card: Path) -> str:
    return card.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0].strip()


def _write_json(path: Path, values: Any) -> None:
    write_atomic(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
