"""Does a recipe hold on other photos: runs over sizes of the folder and seeds, against stage 0 with a plain constant.

python scripts/robustness.py --recipe own-data --data-dir DIR --trunk-weights FILE --output-dir OUT
       [--photos 20 40 80] [--seeds 3] [--set KEY=VALUE ...]

Each run is one of `sbce run` that never sees a mask. Beside it, its own stage 0 labels with the constant 0.3, before
and after the CRF: what the rounds and the refinement have to beat. Then all label maps are scored on the masks of the
training split. OUT/robustness.md has the tables: per size, one line per stage with mean and range over the seeds, the
class that is worst in the mean, lost tags, how well the shares that a class gets follow the true ones over its photos
(rank correlation, and mean |log(share / truth)|; means over classes), and classes that end more than 2 points below
stage 0's; and what the dry run said about the minutes. The same command again makes only what is missing.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sbce_hf.cli.common import add_recipe_options, command_line, config_from, say
from sbce_hf.cli.console import quiet_loading, set_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sbce_hf.config import RunConfig
    from sbce_hf.data import TaggedImages
    from sbce_hf.labels.store import LabelStore

BASELINE = "stage 0, constant 0.3"
MARGIN = 0.02


@dataclass(frozen=True)
class Score:
    """Of one store.

    Args:
        classes: IoU per class, background first; NaN where masks and label maps have none of it.
        lost: share of the tags without a pixel.
        correlation: rank correlation over the photos of a class of the share it gets with its true share; mean over
            classes.
        log_error: mean of `|log(share / true share)|` where both have pixels; mean over classes.
    """

    classes: dict[str, float]
    lost: float
    correlation: float
    log_error: float

    @property
    def mean(self) -> float:
        """Mean IoU over the classes that the masks have."""
        return float(np.nanmean(list(self.classes.values())))


def main() -> None:
    """Run, score, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_recipe_options(parser)
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="gets a run for each size and seed")
    parser.add_argument("--photos", type=int, nargs="*", metavar="N", help="use only the first N photos of the split")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs for each size, from the seed on")
    options = parser.parse_args()
    set_up(verbose=False)
    quiet_loading()

    config = config_from(options)
    output_dir, sections = Path(options.output_dir), []
    for photos in options.photos or [config.data.max_images]:
        data = replace(config.data, max_images=photos, score_split=None)
        runs, minutes = [], []
        for seed in range(config.seed, config.seed + options.seeds):
            own = replace(config, seed=seed, data=data)
            run_dir = output_dir / f"photos{photos or '_all'}-seed{seed}"
            minutes.append(_run(own, run_dir, command_line(options)))
            runs.append(_scores(own, run_dir))
        sections.append(f"## {photos or 'All'} photos\n\n{_table(runs, config.seed)}\n\n{_told(minutes)}\n")
        say(sections[-1])
    from sbce_hf.files import write_atomic

    write_atomic(output_dir / "robustness.md", f"# {options.recipe}\n\n" + "\n".join(sections))


def _run(config: "RunConfig", run_dir: Path, command: str) -> tuple[float, float] | None:
    """Minutes that the dry run told and that the run took; `None` if it was not made in one go."""
    from sbce_hf.files import write_atomic
    from sbce_hf.runs.plan import make_plan
    from sbce_hf.runs.run import run

    record = run_dir / "minutes.json"
    if record.is_file():
        told, took = json.loads(record.read_text())
        return told, took
    fresh = not run_dir.exists()
    plan = make_plan(config, run_dir)
    told = sum([stage.seconds or 0 for stage in plan.stages] + list(plan.others.values()))
    start = time.perf_counter()
    run(config, run_dir, command)
    took = time.perf_counter() - start
    if not fresh:
        return None
    write_atomic(record, json.dumps([told / 60, took / 60]))
    return told / 60, took / 60


def _scores(config: "RunConfig", run_dir: Path) -> dict[str, Score]:
    """By the name of a line: the baseline's and every stage's label maps."""
    from sbce_hf.data import load_images
    from sbce_hf.labels.store import LabelStore
    from sbce_hf.runs.proportions import true_shares
    from sbce_hf.runs.single import label_with_checkpoint
    from sbce_hf.runs.stages import stages_of

    images = load_images(config.data, config.data.train_split)
    stages = [stage for stage in stages_of(config) if stage.kind in ("classifier", "refinement")]
    plain = replace(config.labelling, rule="fixed", background_threshold=0.3)
    model = run_dir / stages[0].name / "model"
    baseline = label_with_checkpoint(model, images, plain, run_dir / "baseline").directories
    lines = {f"{BASELINE}: {store.name}": store for store in baseline}
    for stage in stages:
        # What the guard has made of a stage's last label maps stands for them, as it does in the run.
        for name in stage.stores:
            last = name == stage.stores[-1]
            lines[f"{stage.name}: {Path(name).name}"] = (
                stage.final_store(run_dir) if last else run_dir / stage.name / name
            )
    truth = true_shares(images)
    return {name: _score(LabelStore(store), images, truth) for name, store in lines.items()}


def _score(store: "LabelStore", images: "TaggedImages", truth: "NDArray[np.float64]") -> Score:
    import pandas as pd

    from sbce_hf.evaluation.confusion import score_store

    ids, shares = store.proportions()
    rows = {image_id: row for row, image_id in enumerate(images.image_ids)}
    order = [rows[image_id] for image_id in ids]
    tagged, truth = images.label_matrix()[order] > 0, truth[order]
    lost = (tagged & (shares == 0)).sum() / max(tagged.sum(), 1)
    correlations, errors = [], []
    for index in range(images.num_classes):
        pairs = pd.DataFrame({"got": shares[:, index], "true": truth[:, index]})[tagged[:, index]]
        correlations.append(pairs.corr(method="spearman").iloc[0, 1])
        pairs = pairs[(pairs > 0).all(axis=1)]
        errors.append(np.log(pairs["got"] / pairs["true"]).abs().mean())
    classes = score_store(store, images)["per_class_iou"]
    # Classes of a single photo have no correlation; those left out are none of the mean.
    return Score(classes, float(lost), float(pd.Series(correlations).mean()), float(pd.Series(errors).mean()))


def _table(runs: list[dict[str, Score]], first_seed: int) -> str:
    from sbce_hf.evaluation.tables import markdown_table, percent

    rows = []
    names = list(runs[0])
    best = [name for name in names if name.startswith(BASELINE)][-1]
    for name in names:
        scores = [run[name] for run in runs]
        means = [score.mean for score in scores]
        classes = {key: float(np.nanmean([s.classes[key] for s in scores])) for key in scores[0].classes}
        worst = min((key for key in classes if not np.isnan(classes[key])), key=lambda key: classes[key])
        below = [
            f"{key} (seed {seed})"
            for seed, run in enumerate(runs, first_seed)
            for key, value in run[name].classes.items()
            if value < run[best].classes[key] - MARGIN
        ]
        rows.append(
            (
                name,
                percent(float(np.mean(means))),
                f"{percent(min(means))} to {percent(max(means))}",
                f"{worst} {percent(classes[worst])}",
                percent(float(np.mean([score.lost for score in scores]))),
                f"{np.mean([score.correlation for score in scores]):.2f}",
                f"{np.mean([score.log_error for score in scores]):.2f}",
                ", ".join(below) if name not in names[:2] else "",
            )
        )
    header = ("label maps", "mIoU (%)", "range", "worst class", "lost tags (%)", "rank correlation", "log error")
    header += (f"more than {100 * MARGIN:.0f} points below stage 0",)
    return markdown_table(header, rows, text_columns=1)


def _told(minutes: list[tuple[float, float] | None]) -> str:
    known = [pair for pair in minutes if pair is not None]
    if not known:
        return "Minutes: not measured, these runs were continued."
    return (
        "Minutes told by the dry run / taken: " + ", ".join(f"{told:.1f} / {took:.1f}" for told, took in known) + "."
    )


if __name__ == "__main__":
    main()
