"""What is watched while something is trained, and when it is given up."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..postprocess.rules import SOFT_RANGE
from .metrics import Window

logger = logging.getLogger(__name__)


class TrainingHealthError(RuntimeError):
    """Training continues to run but no longer learns; the message says what was seen and what usually helps."""


class ClassHealth:
    """Watches each class's mean probability against its foreground proportion.

    A class whose maps have become binary no longer gets a gradient. If its mean probability is then far from its
    proportion, further training cannot help. A class is judged at the end of an epoch and of the training, once enough
    images with it were seen; the first epoch is left out.

    Args:
        class_names: of the entries of the window's values.
        guarded: whoever trains holds back what becomes of a failed class, so the training ends only if every class
            that is judged has failed; of others it is said once.
    """

    # Share of soft pixels below which a class no longer learns.
    SOFT_SHARE = 0.02
    # Collapsed: mean probability below this factor of the mean proportion ...
    COLLAPSED_FACTOR = 0.25
    # ... which has to be at least this; a very small object's sharp map is mostly outside the soft range, too.
    COLLAPSED_PROPORTION = 0.02
    # Flooded: mean probability above the one while the mean proportion is below the other.
    FLOODED_PROBABILITY = 0.9
    FLOODED_PROPORTION = 0.6
    # Images with the class before it is judged, and passes over the training set before anything is.
    MIN_IMAGES = 8
    GRACE_EPOCHS = 1

    KEYS = ("mean_p", "mean_q", "soft_share")

    def __init__(self, class_names: Sequence[str], guarded: bool = False) -> None:
        self.class_names, self.guarded = tuple(class_names), guarded
        self._told: set[int] = set()
        self._images = np.zeros(len(self.class_names))
        self._sums = {key: np.zeros(len(self.class_names)) for key in self.KEYS}
        self._epoch = self.GRACE_EPOCHS

    def update(self, window: Window) -> None:
        """Add one window; judge at the end of an epoch and of the training.

        Raises:
            TrainingHealthError: a class has collapsed or flooded; if `guarded`, all have.
        """
        if window.epoch <= self.GRACE_EPOCHS:
            return
        self._images += window.weights["mean_p"]
        for key in self.KEYS:
            self._sums[key] += window.total(key)
        epoch, self._epoch = self._epoch, int(window.epoch)
        if epoch == self._epoch and not window.last:
            return
        judged = self._images >= self.MIN_IMAGES
        verdicts = {int(index): self._verdict(int(index)) for index in np.flatnonzero(judged)}
        failures = {index: verdict for index, verdict in verdicts.items() if verdict}
        if failures and (len(failures) == len(verdicts) or not self.guarded):
            raise TrainingHealthError(
                f"at iteration {window.iteration}: {' '.join(failures.values())} Its maps have become binary, "
                "where the sigmoid passes no gradient, so training on does not help. What usually does: a lower "
                "spatial.lr; model.normalization=balanced; fewer epochs in the stage this one started "
                "from; more images of the class; better proportions, if these are far from the truth"
            )
        for index in failures.keys() - self._told:
            logger.warning("%s Its label maps are compared with those of the stage before.", failures[index])
        self._told |= failures.keys()
        for values in (self._images, *self._sums.values()):
            values[judged] = 0

    def state(self) -> dict[str, Any]:
        """The sums, as JSON has them."""
        sums = {key: values.tolist() for key, values in self._sums.items()}
        return {"epoch": self._epoch, "images": self._images.tolist(), "sums": sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what [`state`] gave.

        Raises:
            LookupError: it is something else.
            TypeError: it is something else.
            ValueError: it is something else, or of other classes.
        """
        self._epoch, self._images = int(state["epoch"]), _numbers(state["images"], self._images.shape)
        self._sums = {key: _numbers(state["sums"][key], self._images.shape) for key in self.KEYS}

    def _verdict(self, index: int) -> str | None:
        mean = {key: sums[index] / self._images[index] for key, sums in self._sums.items()}
        collapsed = (
            mean["mean_q"] >= self.COLLAPSED_PROPORTION and mean["mean_p"] < self.COLLAPSED_FACTOR * mean["mean_q"]
        )
        flooded = mean["mean_p"] > self.FLOODED_PROBABILITY and mean["mean_q"] < self.FLOODED_PROPORTION
        if mean["soft_share"] >= self.SOFT_SHARE or not (collapsed or flooded):
            return None
        return (
            f"class {self.class_names[index]!r} has {'collapsed' if collapsed else 'flooded'}: over its last "
            f"{self._images[index]:.0f} images its mean probability is {mean['mean_p']:.3f} where the mean foreground "
            f"proportion is {mean['mean_q']:.3f}, and {mean['soft_share']:.1%} of its pixels lie between "
            f"{SOFT_RANGE[0]} and {SOFT_RANGE[1]}."
        )


class SingleClassWatch:
    """Watches for a network that gives every pixel one and the same class.

    That is normal for a while, as most pixels are background; it is judged over a stretch that does not count the
    first epoch.

    Args:
        class_names: of the entries of the window's `pixel_accuracy`.
    """

    # Length of the stretch: both at least.
    MIN_EPOCHS = 1
    MIN_ITERATIONS = 500

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._start: tuple[int, float] | None = None
        self._right = np.zeros(len(self.class_names), bool)
        self._wrong = np.zeros(len(self.class_names), bool)

    def update(self, window: Window) -> None:
        """Add one window.

        Raises:
            TrainingHealthError: over the stretch at most one class had a correct pixel, and no wrong one, although
                there were others.
        """
        if window.epoch < 1:
            return
        if self._start is None:
            self._restart(window)
            return
        accuracy = window.means["pixel_accuracy"]
        # NaN, of classes without a pixel, is neither.
        self._right |= accuracy > 0
        self._wrong |= accuracy < 1
        if self._right.sum() > 1 or (self._right & self._wrong).any():
            self._restart(window)
            return
        iterations, epochs = window.iteration - self._start[0], window.epoch - self._start[1]
        labelled = int((self._right | self._wrong).sum())
        if iterations >= self.MIN_ITERATIONS and epochs >= self.MIN_EPOCHS and labelled > 1:
            only = "".join(f" {self.class_names[index]!r}" for index in np.flatnonzero(self._right))
            raise TrainingHealthError(
                f"at iteration {window.iteration}: for {iterations} iterations the network has predicted one class"
                f"{only} for every pixel, while the label maps have {labelled} classes. What usually helps: another "
                "segmenter.training.lr (lower if the loss rose before, else higher); weights that are pretrained "
                "instead of random; label maps with more foreground; balanced_loss=true where the model has it"
            )

    def state(self) -> dict[str, Any]:
        """Of the stretch, as JSON has it."""
        return {"start": self._start, "right": self._right.tolist(), "wrong": self._wrong.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what [`state`] gave; raises what [`ClassHealth.restore`] does."""
        start, shape = state["start"], self._right.shape
        self._start = None if start is None else (int(start[0]), float(start[1]))
        self._right, self._wrong = (_numbers(state[name], shape).astype(bool) for name in ("right", "wrong"))

    def _restart(self, window: Window) -> None:
        self._start = window.iteration, window.epoch
        self._right = np.zeros(len(self.class_names), bool)
        self._wrong = np.zeros(len(self.class_names), bool)


def _numbers(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    found = np.array(values, float)
    if found.shape != shape:
        raise ValueError(f"got {found.shape}, expected {shape}")
    return found
