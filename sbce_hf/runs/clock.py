"""A clock for what a run repeats: a training step, the views of a photo, rules, CRF and walk, on this machine."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from ..config import (
    AffinityConfig,
    AugmentationConfig,
    CrfConfig,
    IrnRefinementConfig,
    LabellingConfig,
    LoopConfig,
    SegmenterConfig,
    TrainingConfig,
)
from ..data import TaggedImages
from ..data.decoding import UnreadableError
from ..data.transforms import TrainingDataset
from ..evaluation.scan import scan_fixed_threshold_on_ground_truth
from ..inference.affinity import AffinityMethod
from ..inference.irn import ObjectMap, WalkMethod
from ..inference.segmenter import segment
from ..inference.views import class_maps
from ..models.modeling_irn import IrnModel
from ..models.modeling_spatial_bce import SpatialBceForImageClassification
from ..postprocess.crf import dense_crf, dense_crf_from_probabilities
from ..postprocess.rules import ClassMaps, apply_rule, with_thresholds
from ..training.depthwise import quick_depthwise
from ..training.device import autocast, tune_allocator, use_cpu
from ..training.features import feature_shape

# Photos that are looked at, and images of a timed step on a CPU, where time is proportional to their number.
PHOTOS, IMAGES = 3, 4
# The first time is not counted, as caches and the allocator are cold, unless it took longer than so many seconds: a
# forecast of hours may not take minutes.
REPEATS, SLOW = 2, 4.0


class Clock:
    """Times what a run repeats; every answer is in seconds per image, of one process.

    Models are moved to the device, and left there.

    Args:
        images: the training set; a few of its photos are labelled.
    """

    def __init__(self, images: TaggedImages) -> None:
        self.device = PartialState(cpu=use_cpu()).device
        if self.device.type == "cpu":
            tune_allocator()
        spread = np.linspace(0, len(images) - 1, min(PHOTOS, len(images))).round().astype(int)
        tagged = [index for index in spread.tolist() if images.label_matrix()[index].any()]
        self.photos, readable = [], []
        for index in tagged or [0]:
            # What has become unreadable is skipped where it is labelled.
            with contextlib.suppress(UnreadableError):
                self.photos.append(images.image(index))
                readable.append(index)
        self.images = images.select(readable)
        self._seen: dict[str, tuple[list[ClassMaps], float]] = {}

    def training(self, model: PreTrainedModel, config: LoopConfig, size: int, batch: int) -> float:
        """Forward and backward pass, and loading.

        Args:
            model: that is trained.
            config: of the training.
            size: of the samples in pixels.
            batch: images that go through the network together.
        """
        count = min(batch, IMAGES) if self.device.type == "cpu" else batch
        inputs = self._inputs(model, config, size, count)
        model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-arg]
        model.train()

        def step() -> None:
            with autocast(config.mixed_precision, self.device.type):
                loss = model(**inputs).loss
            loss.backward()
            model.zero_grad()

        with quick_depthwise(model, config.mixed_precision, self.device.type):
            own = self._time(step) / count
        if "features" in inputs:
            return own
        augmentation = getattr(config, "augmentation", AugmentationConfig())
        samples = TrainingDataset(self.images, size, augmentation, seed=0)
        loading = self._time(lambda: [samples[index] for index in range(len(samples))]) / len(samples)
        return own + loading if config.num_workers == 0 else self._overlapped(own, loading, config.num_workers)

    def looking(self, model: SpatialBceForImageClassification, side: int) -> float:
        """What a frozen trunk makes of a photo, and loading it."""
        model.eval().to(self.device)  # type: ignore[arg-type]
        samples = TrainingDataset(self.images, side, AugmentationConfig(flip=False, color_jitter=0.0), seed=0)

        @torch.inference_mode()
        def look() -> None:
            pixels = torch.stack([cast(Tensor, samples[index]["pixel_values"]) for index in range(len(samples))])
            model.base_model(pixels.to(self.device))

        return self._time(look) / len(samples)

    def labelling(
        self,
        model: SpatialBceForImageClassification,
        config: LabellingConfig,
        crfs: int = 1,
        method: Callable[[np.ndarray, ClassMaps, None], Any] | None = None,
    ) -> float:
        """Views, rule and dense CRF.

        Args:
            model: the classifier.
            config: views and CRF.
            crfs: how often the CRF runs on each photo.
            method: for a photo and its class maps, instead of the rule.
        """
        maps, views = self.maps(model, config)

        def refine() -> None:
            for photo, found in zip(self.photos, maps, strict=True):
                if method is None:
                    apply_rule(found, config)
                else:
                    method(np.asarray(photo), found, None)

        own = views + self._time(refine) / len(maps)
        if config.crf is None:
            return own
        return self._overlapped(own, crfs * self._crf(maps, config, config.crf), config.crf_workers)

    def walking(
        self,
        model: SpatialBceForImageClassification,
        config: LabellingConfig,
        network: IrnModel,
        section: IrnRefinementConfig,
    ) -> float:
        """IRN's walk, with views and CRF."""
        network.to(self.device)  # type: ignore[arg-type]
        walk = WalkMethod(network, section, config.crf, objects=ObjectMap(model, config))

        def method(image: np.ndarray, maps: ClassMaps, crf: None) -> Any:
            return walk(image, with_thresholds(config.rule, maps, config.peak_share), crf)

        return self.labelling(model, config, method=method)

    def spreading(
        self, model: SpatialBceForImageClassification, config: LabellingConfig, section: AffinityConfig
    ) -> float:
        """Class maps spread over what is alike, with views and CRF."""
        return self.labelling(model, config, method=AffinityMethod(model, section, config))

    def scanning(self, model: SpatialBceForImageClassification, config: LabellingConfig) -> float:
        """The yardstick: the scan for the best constant, and labelling with it."""
        maps, views = self.maps(model, config)
        truth = [np.zeros((photo.height, photo.width), np.uint8) for photo in self.photos]
        scan = self._time(lambda: scan_fixed_threshold_on_ground_truth(maps, truth, self.images.num_classes))
        return scan / len(maps) + views + self.labelling(model, config)

    def predicting(self, model: PreTrainedModel, section: SegmenterConfig) -> float:
        """Prediction of a segmentation network, with its CRF."""
        model.to(self.device)  # type: ignore[arg-type]
        config = replace(section.prediction, image_size=section.prediction.image_size or section.training.image_size)
        probabilities = segment(model, self.photos[0], config)
        own = self._time(lambda: segment(model, self.photos[0], config))
        if config.crf is None:
            return own
        image, crf = np.asarray(self.photos[0]), config.crf
        _compile(crf)
        refine = self._time(lambda: dense_crf_from_probabilities(image, probabilities, crf))
        return self._overlapped(own, refine, config.crf_workers)

    def maps(self, model: SpatialBceForImageClassification, config: LabellingConfig) -> tuple[list[ClassMaps], float]:
        """Class maps of the photos that are looked at, and the seconds that one takes; the same views only once."""
        model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-arg]
        # What one rule needs besides the maps costs next to nothing, and so all stages share a look.
        config, found = replace(config, known_classes="tags", rule="objects"), list[ClassMaps]()

        def look() -> None:
            found[:] = class_maps(model, self.photos, self.images.label_matrix(), config)

        key = repr((config.image_size, config.scales, config.flip, config.batch_size, config.mixed_precision))
        if key not in self._seen:
            seconds = self._time(look) / len(self.photos)
            self._seen[key] = (found, seconds)
        return self._seen[key]

    def _crf(self, maps: Sequence[ClassMaps], config: LabellingConfig, crf: CrfConfig) -> float:
        labelled = [apply_rule(found, config).label_map for found in maps]
        _compile(crf)

        def refine() -> None:
            for photo, label_map, found in zip(self.photos, labelled, maps, strict=True):
                dense_crf(np.asarray(photo), label_map, found.classes.tolist(), crf)

        return self._time(refine) / len(maps)

    def _inputs(self, model: PreTrainedModel, config: LoopConfig, size: int, count: int) -> Mapping[str, Any]:
        """A batch of noise, which takes as long as any other."""
        inputs: dict[str, Any] = {"pixel_values": torch.randn(count, 3, size, size)}
        if isinstance(config, TrainingConfig) and not cast(Any, model.config).train_trunk:
            inputs = {"features": torch.randn(count, *feature_shape(model, size))}
        if isinstance(config, TrainingConfig):
            labels = torch.from_numpy(self.images.label_matrix()).float()
            inputs["labels"] = labels[torch.arange(count) % len(labels)]
            inputs |= {"phase": "bce"}
        else:
            inputs["labels"] = torch.randint(0, 2, (count, size, size))
        return {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in inputs.items()}

    def _time(self, function: Callable[[], Any]) -> float:
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            function()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
            if times[0] > SLOW and self.device.type == "cpu":
                return times[0]
        return statistics.median(times[1:])

    def _overlapped(self, own: float, others: float, workers: int) -> float:
        """Of this process's work and what other processes do meanwhile, which share the cores."""
        cores = os.cpu_count() or 1
        apart = max(own, others / min(workers, cores))
        if self.device.type != "cpu":
            return apart
        return max(apart, (own * min(torch.get_num_threads(), cores) + others) / cores)


def _compile(crf: CrfConfig) -> None:
    """Have the CRF compiled, once: in a new installation that takes longer than many photos."""
    dense_crf(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), [0], crf)
