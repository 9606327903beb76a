"""What a reader of a run sees: score tables and the report as Markdown, with the figures of its sibling files.

Every function takes values; where a run keeps its files is known to `runs/` alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.schema import IGNORE_INDEX, SkippedImage
from ..text import code_block, code_span, duration, markdown
from .scan import LEAK_MARK
from .scores import ScoreRow, SegmenterRow, per_class_table, score_table, segmenter_class_table, segmenter_table
from .tables import Table, markdown_table

SKIPPED_SHOWN = 10


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Args:
        caption: below it.
        file: relative to the report.
    """

    caption: str
    file: str


@dataclass(frozen=True)
class OddPicture:
    """A photo that deserves a look, beside its label map; see `odd_photos`.

    Args:
        image_id: its name.
        reasons: why, in words.
        file: relative to the report.
    """

    image_id: str
    reasons: Sequence[str]
    file: str


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
        verdict: what came of the run, in sentences.
        look_at: what to look at before anything else, see `concerns.concerns`.
        sheet: the contact sheet.
        odd: photos to look at first.
        overlays: folder with every label map over its photo, relative to the report; `""` for none.
        scores: label maps scored on `score_split`.
        score_split: split whose masks were used; `None` when no mask was read.
        known_classes: `"tags"` or `"predicted"`, see `LabellingConfig`.
        segmenters: segmentation networks scored on `segmenter_split`.
        segmenter_split: split whose masks were used for that.
        label_free: the numbers that need no mask, see `quality_page.summary_table`.
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
    verdict: Sequence[str] = ()
    look_at: Sequence[str] = ()
    sheet: Picture | None = None
    odd: Sequence[OddPicture] = ()
    overlays: str = ""
    scores: Sequence[ScoreRow] = ()
    score_split: str | None = None
    known_classes: str = "tags"
    segmenters: Sequence[SegmenterRow] = ()
    segmenter_split: str | None = None
    label_free: Table | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    skipped: Sequence[SkippedImage] = ()
    warnings: Sequence[str] = ()
    quality_path: str = "quality.md"
    config_path: str = "config.yaml"
    saliency: str = ""

    @property
    def headline(self) -> str:
        """What follows the verdict, before what to look at."""
        count = len(self.look_at)
        return "Nothing stands out." if not count else f"{count} thing{'s' * (count > 1)} to look at:"


def facts(context: ReportContext) -> list[tuple[str, Any]]:
    """Names and values of what was run, as plain text; what is empty is left out."""
    found = [
        ("Data", context.data),
        ("Saliency maps", context.saliency),
        ("Images", f"{context.num_images} trained on and labelled, {len(context.skipped)} skipped"),
        ("Classes", f"{len(context.class_names)}: {', '.join(context.class_names)}"),
        ("Seed", context.seed),
        ("Time", ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in context.durations.items())),
        ("Every setting", context.config_path),
        ("Hardware", context.hardware),
        ("Versions", ", ".join(f"{name} {version}" for name, version in context.versions.items())),
    ]
    return [fact for fact in found if fact[1] != ""]


def render_report(context: ReportContext) -> str:
    """The report as Markdown. Without masks it says so and shows label-free numbers only."""
    parts = [f"# {context.title}", *map(markdown, context.verdict), f"**{context.headline}**"]
    if context.look_at:
        parts.append("\n".join(f"- {markdown(line)}" for line in context.look_at))
    if context.sheet:
        parts += ["## Contact sheet", _picture(context.sheet)]
    if context.overlays:
        parts.append(f"Every label map over its photo: [{context.overlays}]({context.overlays})")
    if context.odd:
        parts += ["## Photos to look at first", "Found without any mask; left the photo, right its label map."]
        parts += [
            f"![{number}]({odd.file})\n\n{code_span(odd.image_id)}: {markdown('; '.join(odd.reasons))}"
            for number, odd in enumerate(context.odd, start=1)
        ]
    parts += ["## Scores", *_score_section(context)]
    if context.segmenters:
        parts += ["## Segmentation network", *_segmenter_section(context)]
    if context.label_free:
        parts += ["## Without ground truth", context.label_free.markdown()]
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
        parts.append("## Figures")
        parts += [f"### {caption}\n\n{_picture(Picture(caption, file))}" for caption, file in context.figures.items()]
    rows = [(name, _linked(value, context.config_path)) for name, value in facts(context)]
    parts += ["## What was run", code_block(context.command, "bash")]
    parts.append(markdown_table(("Fact", "Value"), rows, text_columns=2))
    return "\n\n".join(parts) + "\n"


def _picture(picture: Picture) -> str:
    return f"![{picture.caption}]({picture.file})"


def _linked(value: Any, path: str) -> str:
    return f"[{path}]({path})" if value == path else markdown(value)


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
