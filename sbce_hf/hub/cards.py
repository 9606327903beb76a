"""Cards: what a repository says about itself. Values go in, Markdown with metadata comes out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..config import RunConfig
from ..evaluation.scan import LEAK_MARK
from ..evaluation.scores import ScoreRow, SegmenterRow
from ..evaluation.tables import markdown_table, percent
from ..text import code_block, code_span, markdown
from .licenses import License

TEMPLATES = Path(__file__).parent / "templates"
UNKNOWN = "unknown"
# More label values than this are left to config.json.
MAX_LABELS_SHOWN = 40
# What a segmentation network was trained on, by the name of its folder in a run.
TRAINED_ON = {
    "adaptive": "the run's label maps, made from tags",
    "bce": "label maps of the BCE stage, made from tags",
    "mask": "true masks: a yardstick",
}


@dataclass(frozen=True)
class ModelCardContext:
    """Everything a model's card says.

    Args:
        repo_id: where it will lie.
        kind: `"classifier"` (class maps and thresholds) or `"segmenter"`.
        custom_code: the repository carries code, and needs `trust_remote_code` where this package is not installed.
        classes: this package's names of the model and its image processor; `None` for a model of somebody else.
        labels: name per label-map value, background first.
        colours: `[red, green, blue]` per label-map value.
        stage: of the run: `"bce"`, `"round_1"`, ... of a classifier; `"adaptive"`, `"bce"` or `"mask"` of a segmenter;
            `None` where the training is not known.
        config: of the run; `None` without one.
        notes: the run's `run.json`, without local paths.
        num_images: images it was trained on.
        refined: what was done to the label maps that a segmenter was trained on, in words.
        leak: it, or its label maps, were trained with proportions of masks.
        scores: of the run's label maps.
        segmenters: scores of the run's segmentation networks.
        warnings: of the quality report, those of this model's stage, as Markdown.
        label_free: the quality report's table of stages.
        sheet: file of the contact sheet in the repository.
        license: of the weights; `None` where nobody has said.
        trunk_license: what the weights came under that the training started from; `None` where that is not known.
        tags: more tags.
        tag: git tag that the commit will get; `None` if it gets none.
        files: what else is in the repository.
    """

    repo_id: str
    kind: Literal["classifier", "segmenter"]
    custom_code: bool
    classes: tuple[str, str] | None
    labels: Sequence[str]
    colours: Sequence[Sequence[int]]
    stage: str | None = None
    config: RunConfig | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    num_images: int | None = None
    refined: str = ""
    leak: bool = False
    scores: Sequence[ScoreRow] = ()
    segmenters: Sequence[SegmenterRow] = ()
    warnings: str = ""
    label_free: str = ""
    sheet: str | None = None
    license: License | None = None
    trunk_license: License | None = None
    tags: Sequence[str] = ()
    tag: str | None = None
    files: Sequence[str] = ()


def render_model_card(context: ModelCardContext) -> str:
    """A model's `README.md`."""
    config = context.config
    license = context.license or License(UNKNOWN)
    data = ModelCardData(
        license=license.id,
        license_name=license.name,
        license_link=license.link,
        library_name="transformers",
        pipeline_tag="image-classification" if context.kind == "classifier" else "image-segmentation",
        tags=["sbce_hf", "weakly-supervised-semantic-segmentation", *context.tags],
        datasets=[config.data.dataset] if config and config.data.source == "hub" and config.data.dataset else None,
        model_name=context.repo_id.split("/")[1],
        eval_results=eval_results(context) or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / "model_card.md"),
        card=context,
        data_name=markdown(data_name(config)) if config else None,
        markdown=markdown,
        code_span=code_span,
        code_block=code_block,
        label_table=_label_table(context),
        score_table=_score_table(context) if context.scores else "",
        segmenter_table=_segmenter_table(context) if context.segmenters else "",
        trained_on=TRAINED_ON.get(context.stage or ""),
        revision=f', revision="{context.tag}"' if context.tag else "",
    )
    return f"{card}\n"


def data_name(config: RunConfig) -> str:
    """The source in words, without a path."""
    data = config.data
    if data.source == "shapes":
        return "shapes (drawn by sbce_hf)"
    where = data.dataset if data.source == "hub" else data.data_dir
    return f"{data.source} ({Path(where).name if where and data.source != 'hub' else where})"


def eval_results(context: ModelCardContext) -> list[EvalResult]:
    """Scores of this very model for which no ground truth decided anything; a leak is never among them."""
    config = context.config
    if config is None:
        return []
    found: list[tuple[ScoreRow | SegmenterRow, dict[str, str]]]
    if context.kind == "classifier":
        split = config.data.score_split
        known = config.labelling.known_classes
        found = [
            (row, {"threshold_rule": row.rule, "known_classes": known})
            for row in context.scores
            if row.stage == context.stage and not row.uses_ground_truth
        ]
    else:
        split = config.segmenter.score_split if config.segmenter else None
        found = [
            (row, {"threshold_rule": "argmax", "known_classes": "none"})
            for row in context.segmenters
            if row.labels == context.stage and row.labels != "mask" and not row.uses_ground_truth
        ]
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=str(config.data.dataset if config.data.source == "hub" else config.data.source),
            dataset_name=data_name(config),
            dataset_split=split,
            metric_type="mean_iou",
            metric_value=round(row.mean_iou, 4),
            metric_name=f"mean IoU, {'dense CRF' if row.crf else 'no CRF'}",
            metric_args={
                "num_images": row.num_images,
                **how,
                "dense_crf": row.crf,
                "refinement": row.note or "none",
                "ground_truth_used": False,
            },
        )
        for row, how in found
        if not math.isnan(row.mean_iou)
    ]


def _label_table(context: ModelCardContext) -> str:
    rows = [
        (value, markdown(name), "#{:02x}{:02x}{:02x}".format(*colour))
        for value, (name, colour) in enumerate(zip(context.labels, context.colours, strict=True))
    ]
    table = markdown_table(("Value", "Name", "Colour"), rows[:MAX_LABELS_SHOWN], text_columns=3)
    hidden = len(rows) - MAX_LABELS_SHOWN
    return f"{table}\n\nand {hidden} more, in `config.json`." if hidden > 0 else table


def _score_table(context: ModelCardContext) -> str:
    """Label maps of every stage; rows of this model in bold, leaks last and marked."""
    config = context.config
    split = markdown(config.data.score_split) if config else None
    tags = "known from tags" if config is None or config.labelling.known_classes == "tags" else "predicted"
    cells = []
    for row in sorted(context.scores, key=lambda row: row.uses_ground_truth):
        own = context.kind == "classifier" and row.stage == context.stage and not row.uses_ground_truth
        used = f"**yes** {LEAK_MARK}" if row.uses_ground_truth else "no"
        line = [markdown(row.stage), split, row.num_images, tags, markdown(row.rule), _yes(row.crf)]
        cells.append(_bold([*line, markdown(row.note or "none"), used, percent(row.mean_iou)], own))
    header = ("Stage", "Split", "Images", "Classes of an image", "Threshold rule", "Dense CRF", "Refinement")
    return markdown_table((*header, "Ground truth used for a choice", "mIoU (%)"), cells, text_columns=8)


def _segmenter_table(context: ModelCardContext) -> str:
    """Segmentation networks; rows of this model in bold."""
    section = context.config.segmenter if context.config else None
    cells = []
    for row in context.segmenters:
        own = context.kind == "segmenter" and row.labels == context.stage
        used = "**yes**, for training" if row.labels == "mask" or row.uses_ground_truth else "no"
        split = markdown(section.score_split) if section else None
        trained_on = TRAINED_ON.get(row.labels, markdown(row.labels))
        line = [trained_on, split, row.num_images, "not needed", "argmax", _yes(row.crf)]
        cells.append(_bold([*line, markdown(row.note or "none"), used, percent(row.mean_iou)], own))
    header = ("Trained on", "Split", "Images", "Tags", "Threshold rule", "Dense CRF", "Refinement")
    return markdown_table((*header, "Ground truth used", "mIoU (%)"), cells, text_columns=8)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _bold(cells: Sequence[Any], bold: bool) -> list[Any]:
    return [f"**{cell}**" if bold else cell for cell in cells]
