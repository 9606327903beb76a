"""The plan of a run as text."""

from ..runs.plan import Plan
from ..runs.provenance import hardware


def render_plan(plan: Plan) -> str:
    """The plan as text for a terminal."""
    config = plan.config
    classes = "?" if plan.class_names is None else f"{len(plan.class_names)}: {', '.join(plan.class_names)}"
    scales = (config.labelling.scales, config.final_scales or config.labelling.scales)
    views, last = (len(chosen) * (2 if config.labelling.flip else 1) for chosen in scales)
    crf = "on" if config.labelling.crf else "off"
    lines = [
        f"plan for {plan.run_dir} (nothing is written)",
        f"machine    {hardware()}, {plan.processes} process{'es' if plan.processes > 1 else ''}",
        f"data       {config.data.source}, classes {classes}",
        *(f"split      {split}" for split in plan.splits),
        *(f"needs      {need}" for need in plan.needs),
        f"directory  {plan.state}",
        f"labelling  rule {config.labelling.rule}, {views} views an image ({last} in the last round), CRF {crf}",
        "",
        *_stage_table(plan),
        "",
        "memory: estimated for one process, in GiB: weights, gradients, momentum, activations",
    ]
    if plan.problems:
        lines += ["", f"{len(plan.problems)} problem{'s' if len(plan.problems) > 1 else ''}:"]
        lines += [f"- {problem}" for problem in plan.problems]
    return "\n".join(lines)


def _stage_table(plan: Plan) -> list[str]:
    header = ("stage", "images", "epochs", "iterations", "batch", "size", "precision", "trained", "frozen", "memory")
    rows: list[tuple[str, ...]] = [header]
    for stage in plan.stages:
        training = stage.training
        cells = (
            stage.name,
            stage.images,
            training.epochs,
            stage.iterations,
            training.batch_size,
            stage.size,
            "float32" if training.mixed_precision == "no" else training.mixed_precision,
            None if stage.trained is None else f"{stage.trained / 1e6:.2f} M",
            None if stage.frozen is None else f"{stage.frozen / 1e6:.2f} M",
            None if stage.memory is None else f"{stage.memory.total / 2**30:.2f}",
        )
        rows.append(tuple("?" if cell is None else str(cell) for cell in cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
