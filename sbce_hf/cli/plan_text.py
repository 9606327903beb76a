"""What a dry run has found, as text for a terminal."""

from typing import TYPE_CHECKING

from ..text import duration

if TYPE_CHECKING:
    from ..runs.planned import Plan


def render_plan(plan: "Plan", seeds: int | None = None) -> str:
    """The plan as text for a terminal.

    Args:
        plan: of one run.
        seeds: how many runs there are to be; `None` for a run by itself.
    """
    from ..evaluation.tag_counts import count_tags, tag_concerns
    from ..runs.provenance import hardware

    config = plan.config
    classes, concerns = "?", list[str]()
    if (images := plan.images) is not None:
        counts = count_tags(images.label_matrix(), images.class_names)
        classes = f"{len(counts)}: {', '.join(f'{name} ({count})' for name, count in counts.items())}"
        concerns = tag_concerns(images.label_matrix(), images.class_names)
    scales = (config.labelling.scales, config.final_scales or config.labelling.scales)
    views, last = (len(chosen) * (2 if config.labelling.flip else 1) for chosen in scales)
    crf = "on" if config.labelling.crf else "off"
    lines = [
        f"plan for {plan.run_dir} (nothing is written)",
        f"machine    {hardware()}, {plan.processes} process{'es' if plan.processes > 1 else ''}",
        f"data       {config.data.source}, classes (photos) {classes}",
        *(f"look at    {concern}" for concern in concerns),
        *(f"split      {split}" for split in plan.splits),
        *(f"needs      {need}" for need in plan.needs),
        f"directory  {plan.state}",
        f"labelling  rule {config.labelling.rule}, {views} views an image ({last} in the last round), CRF {crf}",
        "",
        *stage_table(plan),
        "",
        "memory: estimated for one process, in GiB: weights, gradients, optimiser, activations",
        *time_lines(plan, seeds),
    ]
    if plan.problems:
        lines += ["", f"{len(plan.problems)} problem{'s' if len(plan.problems) > 1 else ''}:"]
        lines += [f"- {problem}" for problem in plan.problems]
    return "\n".join(lines)


def time_lines(plan: "Plan", seeds: int | None = None) -> list[str]:
    """The run's duration in words, and what would shorten it; nothing where it could not be measured.

    Args:
        plan: of one run.
        seeds: see [`render_plan`].
    """
    from ..training.device import computes_bfloat16

    known = [stage.seconds for stage in plan.stages if stage.seconds is not None]
    if not known:
        return []
    others = "".join(f", {name} {duration(seconds)}" for name, seconds in plan.others.items())
    total = sum(known) + sum(plan.others.values())
    once = f"time: about {duration(total)} on this machine as it is now, training and labelling{others}"
    lines = [f"{once}; without scores"]
    if seeds is not None and seeds > 1:
        lines.append(f"      {seeds} seeds one after another: about {duration(seeds * total)}")
    if computes_bfloat16() and any(stage.training.mixed_precision == "no" for stage in plan.stages):
        lines.append("      it computes in bfloat16, too: up to twice as fast with --set mixed_precision=auto")
    return lines


def stage_table(plan: "Plan") -> list[str]:
    """The trainings, one line each below a header."""
    from ..evaluation.tables import Table

    header: tuple[str, ...] = ("stage", "images", "epochs", "iterations", "batch", "size", "precision", "trained")
    header += ("frozen", "memory", "minutes")
    rows: list[tuple[str, ...]] = []
    for stage in plan.stages:
        training = stage.training
        cells = (
            stage.name,
            stage.images,
            stage.epochs,
            stage.iterations,
            training.batch_size,
            stage.size,
            "float32" if training.mixed_precision == "no" else training.mixed_precision,
            None if stage.trained is None else f"{stage.trained / 1e6:.2f} M",
            None if stage.frozen is None else f"{stage.frozen / 1e6:.2f} M",
            None if stage.memory is None else f"{stage.memory.total / 2**30:.2f}",
            None if stage.seconds is None else f"{stage.seconds / 60:.1f}",
        )
        rows.append(tuple("?" if cell is None else str(cell) for cell in cells))
    return Table(header, rows).lines()
