"""What a reader of a run sees: score tables and the Markdown report, with the figures of its sibling files.

Every function takes values; where a run keeps its files is known to `runs/` alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..data.schema import IGNORE_INDEX, SkippedImage
from ..text import code_block, code_span, duration, markdown
from .scan import LEAK_MARK
from .tables import Strong, Table, markdown_table, percent

SKIPPED_SHOWN = 10


@dataclass(frozen=True)
class ScoreRow:
    """Label maps of one stage under one rule, scored on masks.

    Args:
        stage: name of the training stage, for example `"round1"`.
        rule: how class maps became labels, for example `"paper"` or `"fixed 0.30"`.
        crf: whether the dense CRF ran on the label maps.
        mean_iou: in 0-1; NaN when nothing was scored.
        per_class_iou: class name, `"background"` included, to IoU in 0-1; NaN for a class in neither map nor mask.
        num_images: images that were scored.
        uses_ground_truth: the rule's constant was chosen on the masks it is scored on, or the network was trained with
            proportions of masks, so the number is a leak.
        note: what else was done to the label maps, in words.
    """

    stage: str
    rule: str
    crf: bool
    mean_iou: float
    per_class_iou: Mapping[str, float]
    num_images: int
    uses_ground_truth: bool
    note: str = ""


@dataclass(frozen=True)
class SegmenterRow:
    """A segmentation network, scored on masks of images it was not trained on.

    Args:
        labels: what it was trained on: `"adaptive"` (the run's last label maps), `"bce"` or `"mask"` (true masks).
        crf: whether the dense CRF ran on its predictions.
        mean_iou: in 0-1; NaN when nothing was scored.
        per_class_iou: class name, `"background"` included, to IoU in 0-1; NaN for a class in neither map nor mask.
        num_images: images that were scored.
        uses_ground_truth: its label maps come from a training with proportions of masks, so the number is a leak.
        note: what else was done to the label maps that it was trained on, in words.
    """

    labels: str
    crf: bool
    mean_iou: float
    per_class_iou: Mapping[str, float]
    num_images: int
    uses_ground_truth: bool = False
    note: str = ""


@dataclass(frozen=True)
class ReportContext:
    """Everything the report says. Mappings and sequences are shown in their order; empty ones are left out.

    Args:
        title: first heading.
        command: the one command that repeats the run.
        seed: of the run.
        data: the source in words.
        num_images: images that were trained on and labelled.
        class_names: foreground classes.
        versions: package to version.
        hardware: in words.
        durations: stage to seconds.
        scores: label maps scored on `score_split`.
        score_split: split whose masks were used; `None` when no mask was read.
        known_classes: `"tags"` or `"predicted"`, see `LabellingConfig`.
        segmenters: segmentation networks scored on `segmenter_split`.
        segmenter_split: split whose masks were used for that.
        label_free: Markdown of the numbers that need no mask, see `quality.summary_table`.
        figures: caption to path, relative to the report.
        skipped: images that could not be read.
        warnings: of the quality report.
        quality_path: quality report, relative to the report.
        config_path: resolved config, relative to the report.
        saliency: whose saliency maps were used, and how, in words; `""` for none.
    """

    title: str
    command: str
    seed: int
    data: str
    num_images: int
    class_names: Sequence[str]
    versions: Mapping[str, str]
    hardware: str
    durations: Mapping[str, float]
    scores: Sequence[ScoreRow] = ()
    score_split: str | None = None
    known_classes: str = "tags"
    segmenters: Sequence[SegmenterRow] = ()
    segmenter_split: str | None = None
    label_free: str = ""
    figures: Mapping[str, str] = field(default_factory=dict)
    skipped: Sequence[SkippedImage] = ()
    warnings: Sequence[str] = ()
    quality_path: str = "quality.md"
    config_path: str = "config.yaml"
    saliency: str = ""


def score_table(rows: Sequence[ScoreRow]) -> Table:
    """One line per score, mIoU in percent; those that used ground truth come last and are marked as a leak."""
    cells = []
    for row in sorted(rows, key=lambda row: row.uses_ground_truth):
        note = Strong(LEAK_MARK) if row.uses_ground_truth else row.note
        crf = "yes" if row.crf else "no"
        cells.append((row.stage, row.rule, crf, note, percent(row.mean_iou), row.num_images))
    return Table(("Stage", "Rule", "Dense CRF", "Note", "mIoU (%)", "Images"), cells, text_columns=4)


def per_class_table(rows: Sequence[ScoreRow]) -> Table:
    """One line per class, one column per score, IoU in percent."""
    ordered = sorted(rows, key=lambda row: row.uses_ground_truth)
    header = [
        f"{row.stage} {row.rule}{' + CRF' if row.crf else ''}{' ' + LEAK_MARK if row.uses_ground_truth else ''}"
        for row in ordered
    ]
    means = (Strong("mean"), *(percent(row.mean_iou) for row in ordered))
    return Table(("Class", *header), [*_per_class(ordered), means])


def _per_class(rows: Sequence[ScoreRow | SegmenterRow]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(name for row in rows for name in row.per_class_iou)
    return [(name, *(percent(row.per_class_iou.get(name)) for row in rows)) for name in names]


# What a segmenter's training labels are called in a table.
_TRAINED_ON = {
    "adaptive": "the run's label maps",
    "bce": "label maps of BCE",
    "mask": "true masks (a yardstick)",
}


def segmenter_table(rows: Sequence[SegmenterRow]) -> Table:
    """One line per segmenter, mIoU in percent, and its share of what the same network reaches on true masks."""
    full = {row.crf: row.mean_iou for row in rows if row.labels == "mask"}
    cells = [
        (
            _TRAINED_ON.get(row.labels, row.labels) + (f" ({row.note})" if row.note else ""),
            "yes" if row.crf else "no",
            "yes" if row.labels == "mask" or row.uses_ground_truth else "no",
            percent(row.mean_iou),
            percent(row.mean_iou / full[row.crf]) if full.get(row.crf) else "-",
            row.num_images,
        )
        for row in rows
    ]
    header = ("Trained on", "Dense CRF", "Ground truth used", "mIoU (%)", "Share of true masks' (%)", "Images")
    return Table(header, cells, text_columns=3)


def segmenter_class_table(rows: Sequence[SegmenterRow]) -> Table:
    """One line per class, one column per segmenter, IoU in percent."""
    columns = [f"{row.labels}{' + CRF' if row.crf else ''}" for row in rows]
    return Table(("Class", *columns), _per_class(rows))


def render_report(context: ReportContext) -> str:
    """The report as Markdown. Without masks it says so and shows label-free numbers only."""
    facts = [
        ("Data", markdown(context.data)),
        ("Saliency maps", markdown(context.saliency)),
        ("Images", f"{context.num_images} trained on and labelled, {len(context.skipped)} skipped"),
        ("Classes", f"{len(context.class_names)}: {', '.join(map(markdown, context.class_names))}"),
        ("Seed", context.seed),
        ("Hardware", context.hardware),
        ("Versions", ", ".join(f"{name} {version}" for name, version in context.versions.items())),
        ("Time", ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in context.durations.items())),
        ("Every setting", f"[{context.config_path}]({context.config_path})"),
    ]
    facts_table = markdown_table(("Fact", "Value"), [fact for fact in facts if fact[1] != ""], text_columns=2)
    parts = [f"# {context.title}", "## What was run", code_block(context.command, "bash"), facts_table]
    parts += ["## Scores", *_score_section(context)]
    if context.segmenters:
        parts += ["## Segmentation network", *_segmenter_section(context)]
    if context.label_free:
        parts += ["## Without ground truth", context.label_free]
    parts += ["## Warnings", "\n".join(f"- {markdown(warning)}" for warning in context.warnings) or "None."]
    parts.append(
        f"Thresholds, coverage and lost classes, class by class: [{context.quality_path}]({context.quality_path})"
    )
    if context.skipped:
        listed = [f"- {code_span(image.file)}: {markdown(image.reason)}" for image in context.skipped[:SKIPPED_SHOWN]]
        if len(context.skipped) > SKIPPED_SHOWN:
            listed.append(f"- and {len(context.skipped) - SKIPPED_SHOWN} more")
        parts += [f"## Skipped images: {len(context.skipped)}", "\n".join(listed)]
    if context.figures:
        parts += [
            "## Figures",
            *(f"### {caption}\n\n![{caption}]({file})" for caption, file in context.figures.items()),
        ]
    return "\n\n".join(parts) + "\n"


def _score_section(context: ReportContext) -> list[str]:
    if context.score_split is None:
        return ["No ground truth was given (`data.score_split` is not set), so no mIoU can be computed."]
    if not context.scores:
        return [f"Nothing was scored on split {code_span(context.score_split)}."]
    return [
        f"Label maps against the masks of split {code_span(context.score_split)}; each image's classes are known from "
        f"its {'tags' if context.known_classes == 'tags' else 'predicted tags'}.",
        score_table(context.scores).markdown(),
        "`paper` and `official` use adaptive thresholds learned from tags alone, `peak` a share of each map's highest "
        "probability, `mean` its mean as the share of pixels, `fixed` one constant set beforehand, `objects` one "
        f"where features see an object; a row marked {LEAK_MARK} picked its constant on these very masks, or was "
        "trained with proportions of masks: a yardstick, not a result.  \n"
        "mIoU is the mean over the background and all classes of counts summed over images; pixels whose mask says "
        f"{IGNORE_INDEX} do not count, and `-` is a class in neither label maps nor masks.",
        "### IoU per class (%)",
        per_class_table(context.scores).markdown(),
    ]


def _segmenter_section(context: ReportContext) -> list[str]:
    return [
        "One network from one start on different labels, without tags, on split "
        f"{code_span(context.segmenter_split)}.",
        segmenter_table(context.segmenters).markdown(),
        "### IoU per class (%), by training labels",
        segmenter_class_table(context.segmenters).markdown(),
    ]
