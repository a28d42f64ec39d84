"""The training loop: a GPT, batches and a recipe in; steps, evaluations and a state on disk out.

The loop knows neither texts nor tasks: its caller gives it the batches, and a function that saves
the model after an evaluation.

A killed run resumes from its last evaluation with the same losses: the batch and the dropout of a
step depend only on the seed and the number of the step. The exception is a run that `minutes` end:
its learning rate follows the clock, so two such runs are similar, not equal.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gptx.progress import note, stage
from gptx_models.gpt.model import GPT
from gptx_models.training.distributed import Processes, check_processes, parallelize
from gptx_models.training.interrupt import collect_signals
from gptx_models.training.loss import Objective
from gptx_models.training.meters import LOG_EVERY, LossMeter, RunClock, time_left
from gptx_models.training.metrics_log import MetricsLog, MetricsRow
from gptx_models.training.optimizer import optimizers_of, set_learning_rate
from gptx_models.training.recipe import Recipe
from gptx_models.training.run_state import Progress, full_weights, read_state, write_state
from gptx_models.training.schedule import learning_rate
from gptx_models.training.step import Batch, forward_backward, optimizer_step
from gptx_models.training.torch_compile import compiled
from gptx_models.training.validation import EvalResult, eval_result, validation_loss


@dataclass(frozen=True)
class TrainingData:
    """The batches to train on and to validate with."""

    # step -> the batch, before it is divided among the processes; always the same for a step
    batch: Callable[[int], Batch]
    validation: Callable[[], Iterable[Batch]]  # the batches of one evaluation
    # UTF-8 bytes per token of the validation text; None if the data is not plain text.
    bytes_per_token: float | None = None
    masked: bool = False  # True: most targets are IGNORED


@dataclass
class TrainState:
    """The objects that training steps change: the model, the optimizers and the records."""

    gpt: GPT
    objective: Objective  # the GPT with its loss
    model: nn.Module  # the objective, compiled and wrapped for the processes
    optimizers: list[Optimizer]
    scaler: torch.GradScaler  # of fp16 losses; does nothing in other precisions
    progress: Progress
    clock: RunClock
    losses: LossMeter
    metrics: MetricsLog | None  # None except in the main process


def loop(
    gpt: GPT,
    data: TrainingData,
    recipe: Recipe,
    run: Path,
    processes: Processes,
    *,
    on_eval: Callable[[GPT, EvalResult], None],
) -> EvalResult:
    """Train `gpt` until the recipe's steps, minutes or patience end the run.

    run: the folder for the state, metrics.csv and loss.png. A state in it is resumed.
    on_eval: called in the main process after each evaluation, with the whole model on the CPU.

    Raises UsageError for settings that do not go together, and CheckpointError if the loss
    diverges or is not a number. SIGINT raises KeyboardInterrupt and SIGTERM raises SystemExit,
    both after the step is finished and the state written.
    """
    check_processes(recipe, processes)
    state = _start(gpt, data, recipe, run, processes)
    progress, clock = state.progress, state.clock
    result: EvalResult | None = None
    with (
        stage("Training", total=1.0, quiet=not processes.is_main) as advance,
        collect_signals() as signals,
    ):
        done, latest = clock.share_done(), ""
        advance(done)
        # One step at least, however short the time: a run always writes a checkpoint.
        while not progress.step or (done < 1 and not _out_of_patience(progress, recipe)):
            rate = learning_rate(progress.step, done, recipe)
            set_learning_rate(state.optimizers, rate)
            batch = data.batch(progress.step)
            loss = forward_backward(
                state.model, state.scaler, batch, recipe, processes, progress.step
            )
            norm = optimizer_step(state.model, state.optimizers, state.scaler, clip=recipe.clip)
            state.losses.add(loss)
            progress.step += 1
            progress.tokens += batch[0].numel()

            before, done = done, clock.share_done()
            advance(done - before, f"step {progress.step}{latest}")
            validate = progress.step % recipe.eval_every == 0 or done >= 1
            log = validate or progress.step % LOG_EVERY == 0
            if log:
                row = _metrics_row(state, rate, norm)
                latest = f", loss {row.train_loss:.3f}, {clock.tokens_per_second():,.0f} tokens/s"
                if validate:
                    result = _validate(state, data, recipe, processes)
                    _save(state, result, row, run, processes, on_eval, done)
                elif state.metrics:
                    state.metrics.add(row)
            # Agreeing on a signal makes the processes wait for each other. Several processes
            # therefore do it only at steps that write a row, where they wait anyway.
            if (log or processes.size == 1) and processes.any(bool(signals)):
                _stop(state, run, processes, signals)
    return result or _nothing_left(state, data, recipe, processes)


def _start(
    gpt: GPT, data: TrainingData, recipe: Recipe, run: Path, processes: Processes
) -> TrainState:
    """The state of a new run, or of the run that lies in the folder `run`."""
    gpt.to(processes.device)
    objective = Objective(gpt, masked=data.masked)
    model = compiled(parallelize(objective, processes), recipe)
    optimizers = optimizers_of(gpt, recipe)
    progress = read_state(run, gpt, optimizers) or Progress()
    if progress.step and processes.is_main:
        note(f"going on from step {progress.step}")
    scaler = torch.GradScaler(
        processes.device.type, init_scale=progress.scale, enabled=recipe.precision == "fp16"
    )
    metrics = MetricsLog(run, done=progress.step) if processes.is_main else None
    clock, losses = RunClock(progress, recipe, processes), LossMeter(processes)
    return TrainState(gpt, objective, model, optimizers, scaler, progress, clock, losses, metrics)


def _out_of_patience(progress: Progress, recipe: Recipe) -> bool:
    return bool(recipe.patience) and progress.since_best >= recipe.patience


def _metrics_row(state: TrainState, rate: float, norm: Tensor) -> MetricsRow:
    loss = state.losses.read(state.progress.step)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    progress = state.progress
    return MetricsRow(progress.step, progress.tokens, state.clock.seconds, rate, loss, float(norm))


def _validate(
    state: TrainState, data: TrainingData, recipe: Recipe, processes: Processes
) -> EvalResult:
    """Measure the validation loss; note in the progress whether it is the best so far."""
    val_loss = validation_loss(state.objective, data.validation(), recipe, processes)
    progress = state.progress
    best = val_loss < progress.best
    progress.best = min(val_loss, progress.best)
    progress.since_best = 0 if best else progress.since_best + 1
    progress.seconds = state.clock.seconds
    train_loss = state.losses.mean_since_eval()
    return eval_result(progress, train_loss, val_loss, data.bytes_per_token, best=best)


def _save(
    state: TrainState,
    result: EvalResult,
    row: MetricsRow,
    run: Path,
    processes: Processes,
    on_eval: Callable[[GPT, EvalResult], None],
    done: float,
) -> None:
    """Write the metrics of an evaluation, then the caller's checkpoint, then the state."""
    whole = full_weights(state.gpt, processes)
    if state.metrics:
        state.metrics.add(
            replace(row, val_loss=result.val_loss, bits_per_byte=result.bits_per_byte)
        )
        state.metrics.draw()
        speed = f"{state.clock.tokens_per_second():,.0f} tokens/s"
        note(f"step {result.steps}: {result}, {speed}, {time_left(done, result.seconds)}")
        # Before the state: a run that is killed in between saves the checkpoint twice, not never.
        on_eval(whole, result)
    _write_state(state, run, processes)


def _write_state(state: TrainState, run: Path, processes: Processes) -> None:
    state.progress.scale = state.scaler.get_scale()
    write_state(run, state.gpt, state.optimizers, state.progress, processes)


def _stop(state: TrainState, run: Path, processes: Processes, signals: list[int]) -> NoReturn:
    """Write the state of an interrupted run and end it as the signal asks."""
    state.progress.seconds = state.clock.seconds
    _write_state(state, run, processes)
    if processes.is_main:
        note("stopped: the same command goes on from here")
    if signal.SIGTERM in signals:
        raise SystemExit(128 + signal.SIGTERM)
    raise KeyboardInterrupt


def _nothing_left(
    state: TrainState, data: TrainingData, recipe: Recipe, processes: Processes
) -> EvalResult:
    """The result of a run that was already at its end when it was resumed."""
    if processes.is_main:
        note(
            f"nothing is left to do: the run ended at step {state.progress.step};"
            " --force begins again"
        )
    val_loss = validation_loss(state.objective, data.validation(), recipe, processes)
    return eval_result(state.progress, None, val_loss, data.bytes_per_token, best=False)
