"""One Accelerate loop for everything that is trained: order, steps, resume, logging and progress.

It knows no model: a [`Task`] says what is trained, by which optimiser, and what the loss of a step is. Everything that
an iteration depends on (learning rate, images, augmentation) follows from its number, so that a killed process
continues bit by bit where it was.
"""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..config import LoopConfig, deciding
from ..errors import UserError
from ..processes import decided
from ..progress import TRAINING, Bar, finished_before
from .depthwise import quick_depthwise
from .device import compiled, create_accelerator, resolved, share_batch_norm, start_worker, tune_allocator, use_cpu
from .folder import PROGRESS, FitSummary, Progress, StageFolder, checkpoint_remedy, writing
from .health import TrainingHealthError
from .metrics import Values, Window, WindowMeans, brief
from .optimization import poly_factor
from .sampler import BatchOrder, Draws, EpochDataset

logger = logging.getLogger(__name__)


class Task(Protocol):
    """What is trained, and how a step's loss is computed.

    Args:
        class_names: names of the entries of per-class values.
    """

    class_names: tuple[str, ...]

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """What trains the model, with every group's rate at the first iteration; the schedule scales these."""

    def loss(self, model: Any, batch: dict[str, Tensor], iteration: int) -> tuple[Tensor, Values]:
        """Loss of one batch, and values to log.

        Call the model once: data parallelism exchanges gradients per forward pass. A value is a scalar, or a pair of a
        sum and its weight, both scalar or one entry per class; the keys depend on the iteration only.
        """

    def check(self, window: Window) -> None:
        """Look at the logged values; raise a [`TrainingHealthError`] if training has failed."""

    def state(self) -> dict[str, Any]:
        """What [`check`] remembers of earlier windows, as JSON has it: checkpoints keep it."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what [`state`] gave."""


def stage_folder(
    output_dir: Path, config: LoopConfig, *, images: int, seed: int, name: str, inputs: Mapping[str, Any] | None = None
) -> StageFolder:
    """The folder in which [`fit`] trains, with its arguments: shows whether the stage is finished."""
    training = deciding(resolved(config))
    settings = {"name": name, "seed": seed, "images": images, "training": training, "inputs": inputs or {}}
    return StageFolder(Path(output_dir), settings)


def fit(
    model: Any,
    task: Task,
    dataset: EpochDataset,
    config: LoopConfig,
    *,
    output_dir: Path,
    seed: int,
    name: str,
    inputs: Mapping[str, Any] | None = None,
) -> FitSummary:
    """Train a model; continue where an earlier call in the same folder was killed; return at once if it had finished.

    The batch of an iteration is the same set of images whatever the number of processes. With gradient accumulation,
    losses that normalise by counts do so per micro-batch. An epoch's last partial batch is left out, unless the whole
    set is smaller than a batch.

    Args:
        model: trained in place; needs `save_pretrained`. The trained weights are read from the summary's `model_dir`,
            as a finished stage leaves `model` untouched.
        task: see [`Task`].
        dataset: yields dictionaries of tensors and numbers.
        config: of this stage.
        output_dir: gets `model/`, `metrics.jsonl`, `tensorboard/`, `summary.json` and, until then, `checkpoints/`.
        seed: of order and dropout.
        name: of the stage, for messages: the recipe's section that `config` is, such as `spatial`.
        inputs: what else a stage and its continuation must agree on, such as hashes of the data; plain values.

    Raises:
        ValueError: the folder holds a training with other settings, or the batch cannot be divided.
        TrainingHealthError: the loss is not finite, or the task finds that training has failed.
    """
    folder = stage_folder(output_dir, config, images=len(dataset), seed=seed, name=name, inputs=inputs)
    process = PartialState(cpu=use_cpu())
    if (summary := decided(folder.summary, process)) is not None:
        finished_before(TRAINING)
        logger.info("%s: finished before, in %s", name, folder.path)
        if process.is_main_process:
            folder.drop_checkpoints()
        return summary
    if (failure := decided(folder.failure, process)) is not None:
        raise TrainingHealthError(f"{failure} (found when it was tried before; other settings start it anew)")
    accelerator = create_accelerator(config, folder.path)
    set_seed(seed, device_specific=True)
    if accelerator.device.type == "cpu":
        tune_allocator()
    # Convolutions are up to twice as fast in this layout; other parameters are not concerned.
    model.to(accelerator.device, memory_format=torch.channels_last)
    model.train()
    share_batch_norm(model, accelerator.num_processes, accelerator.device)
    try:
        quick = quick_depthwise(model, config.mixed_precision, accelerator.device.type)
        with compiled(model, config.compile), quick:
            return _Stage(accelerator, model, task, dataset, config, folder, seed, name).run()
    finally:
        for tracker in accelerator.trackers:
            # On a full disk its writer was never made, or cannot end.
            with contextlib.suppress(OSError, AttributeError):
                tracker.finish()
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        accelerator.free_memory()


class _Stage:
    """One call of [`fit`]: what its steps share."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        task: Task,
        dataset: EpochDataset,
        config: LoopConfig,
        folder: StageFolder,
        seed: int,
        name: str,
    ) -> None:
        self.accelerator, self.task, self.config, self.folder, self.name = accelerator, task, config, folder, name
        self.dataset = dataset
        self.order = BatchOrder(
            len(dataset),
            config.batch_size,
            epochs=config.epochs,
            min_iterations=config.min_iterations,
            seed=seed,
            processes=accelerator.num_processes,
            process=accelerator.process_index,
            accumulation=config.gradient_accumulation_steps,
        )
        optimizer = task.optimizer(model)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.means = WindowMeans()

    def run(self) -> FitSummary:
        progress, config, order = self._restore(), self.config, self.order
        started = time.perf_counter() - progress.seconds
        logged = progress.iteration, time.perf_counter()
        tensorboard = {"tensorboard": {"purge_step": progress.iteration + 1}}
        with writing(self.folder.path / "tensorboard"):
            self.accelerator.init_trackers("tensorboard", init_kwargs=tensorboard)
        batches = iter(self._loader(progress.iteration))
        line: dict[str, float] = {}
        total, before = (count * order.batch_size for count in (order.iterations, progress.iteration))
        with Bar(TRAINING, total, before, shown=self.accelerator.is_main_process) as bar:
            for iteration in range(progress.iteration, order.iterations):
                self._step(itertools.islice(batches, config.gradient_accumulation_steps), iteration)
                bar.update(order.batch_size)
                done = iteration + 1
                save = done % config.checkpoint_every == 0 and done < order.iterations
                # Also before each checkpoint: its weights are known to be sound, and no window spans a restart.
                if save or done % config.log_every == 0 or done == order.iterations:
                    images = (done - logged[0]) * order.batch_size
                    line = self._log(done, images / (time.perf_counter() - logged[1]))
                    logged = done, time.perf_counter()
                    bar.note(f"loss {line.get('loss', math.nan):.3f}")
                if save:
                    self._save_checkpoint(done, time.perf_counter() - started)
        return self._finish(time.perf_counter() - started, line)

    def _step(self, batches: Iterator[dict[str, Tensor]], iteration: int) -> None:
        """One optimiser step."""
        factor = poly_factor(iteration, self.order.iterations, self.config.poly_power)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        for batch in batches:
            with self.accelerator.accumulate(self.model):
                loss, values = self.task.loss(self.model, self._to_device(batch), iteration)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.config.max_grad_norm is not None:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.means.add(values)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {}
        for key, value in batch.items():
            layout = torch.channels_last if value.ndim == 4 else torch.preserve_format
            moved[key] = value.to(self.accelerator.device, non_blocking=True, memory_format=layout)
        return moved

    def _loader(self, start: int) -> DataLoader:
        return DataLoader(
            cast(Dataset, Draws(self.dataset)),
            batch_sampler=cast(Any, self.order.batches(start)),
            num_workers=self.config.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=start_worker,
            # Its own generator: the global one, which dropout reads, must not depend on how often training restarted.
            generator=torch.Generator(),
        )

    def _log(self, done: int, images_per_second: float) -> dict[str, float]:
        """Average the window over all processes, check it, write it."""
        means, weights = self.means.reduce(self.accelerator)
        epoch, last = done / self.order.iterations_per_epoch, done == self.order.iterations
        window = Window(done, epoch, means, weights, last)
        if not np.isfinite(means.get("loss", np.zeros(()))):
            self._fail(
                f"{self.name}: the loss is {means['loss']} at iteration {done}. What usually helps: a lower "
                f"{self.name}.lr, {self.name}.max_grad_norm=1.0, {self.name}.mixed_precision=no"
            )
        rate = self.config.lr * poly_factor(done - 1, self.order.iterations, self.config.poly_power)
        values = window.flat(self.task.class_names)
        line = {"iteration": done, "lr": rate, **values, "images_per_second": images_per_second}
        if self.accelerator.is_main_process:
            self.folder.append_metrics(line)
            logger.info("%s %d/%d: %s", self.name, done, self.order.iterations, brief(line))
        with writing(self.folder.path / "tensorboard"):
            self.accelerator.log({key: value for key, value in line.items() if key != "iteration"}, step=done)
        try:
            self.task.check(window)
        except TrainingHealthError as error:
            self._fail(str(error))
        return line

    def _fail(self, verdict: str) -> NoReturn:
        """Say in the folder that this training has failed: trying it again would find the same."""
        if self.accelerator.is_main_process:
            self.folder.fail(verdict)
        raise TrainingHealthError(verdict)

    def _restore(self) -> Progress:
        accelerator, folder = self.accelerator, self.folder
        found = decided(folder.latest_checkpoint, PartialState())
        progress = Progress() if found is None else found[1]
        if accelerator.is_main_process:
            folder.start_from(progress.iteration)
        accelerator.wait_for_everyone()
        if found is not None:
            if progress.processes != accelerator.num_processes:
                raise ValueError(
                    f"{found[0]}: was made by {progress.processes} processes, now there are "
                    f"{accelerator.num_processes}. Continue with as many, or remove the folder to train anew"
                )
            accelerator.load_state(str(found[0]))
            try:
                self.task.restore(progress.task)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise UserError(
                    f"{found[0] / PROGRESS}: task: got {str(progress.task)[:80]!r}, expected what training remembers; "
                    f"{checkpoint_remedy(found[0])}"
                ) from error
            logger.info("%s: continues from iteration %d", self.name, progress.iteration)
        return progress

    def _save_checkpoint(self, done: int, seconds: float) -> None:
        accelerator, target = self.accelerator, self.folder.checkpoint_target(done)
        with writing(self.folder.checkpoints, target):
            accelerator.save_state(str(target))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            progress = Progress(done, seconds, accelerator.num_processes, self.task.state())
            self.folder.finish_checkpoint(progress, self.config.checkpoints_total_limit)

    def _finish(self, seconds: float, line: dict[str, float]) -> FitSummary:
        iterations, images = self.order.iterations, len(self.dataset)
        summary = FitSummary(self.name, self.folder.model, iterations, images, seconds, values=line)
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.folder.complete(model.save_pretrained, summary)
        self.accelerator.wait_for_everyone()
        return summary
