"""The refinement of a run's last label maps by how alike the patches of a photo are to the last round's network.

    affinity/labels/   affinity and affinity_crf: the class maps spread over what is alike, then the rule, then the CRF

Nothing is trained, and no mask is read.
"""

import time
from typing import Any

from ..config import AffinityConfig, RunConfig, deciding
from ..data.preprocessing import Preprocessing
from ..inference.affinity import AFFINITY, AffinityMethod
from ..inference.checkpoints import load_classifier
from ..labels.store import LabelStore
from .bench import Bench
from .guard import hold_back
from .settings import labelling_of
from .single import label_with_checkpoint
from .stage import Refinement, Stage


def check(config: RunConfig, section: AffinityConfig, classifier: Any) -> None:
    """See that the classifier's trunk has what the section asks for.

    Raises:
        UserError: it has not.
    """
    AffinityMethod(classifier, section, labelling_of(config, config.rounds)).check()


def refine(bench: Bench, stage: Stage) -> None:
    """Label every image again; what is there already is kept."""
    config, folder = bench.config, bench.run_dir / stage.name
    section, labelling = config.affinity or AffinityConfig(), labelling_of(config, config.rounds)
    model_dir = bench.run_dir / stage.needs[-1].name / "model"
    model = load_classifier(model_dir)
    started = time.perf_counter()
    summary = label_with_checkpoint(
        model_dir,
        bench.images,
        labelling,
        folder / "labels",
        config.data.strict,
        method=AffinityMethod(model, section, labelling, Preprocessing.of(model.config)),
        inputs={AFFINITY: deciding(section)},
        looked=model_dir.parent / "labels",
    )
    bench.process.wait_for_everyone()
    if summary.num_labelled:
        bench.note_duration(f"{stage.name}: labelling", time.perf_counter() - started)
    bench.leave_out(LabelStore(folder / stage.stores[0]).unreadable)
    hold_back(bench, stage)


REFINEMENT = Refinement(refine, note="affinity of patches", check=check)
