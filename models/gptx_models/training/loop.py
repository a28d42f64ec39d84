"""The training loop: a GPT, batches and a recipe in; steps, evaluations and a state on disk out.

Knows nothing of texts or tasks: what a step reads, and what an evaluation shows and saves, its caller hands in. A run
that is killed goes on from its last evaluation with the same losses, since a step's batch and dropout depend on the
seed and the step's number alone. (Where `minutes` end a run its learning rate follows the clock, and two are only alike.)
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gptx.errors import CheckpointError, UsageError
from gptx.progress import note, stage
from gptx_models.gpt.model import GPT
from gptx_models.training.distributed import Processes, parallelize
from gptx_models.training.loss import IGNORED, Objective
from gptx_models.training.metrics_log import MetricsLog, MetricsRow
from gptx_models.training.optimizer import optimizers_of, set_learning_rate
from gptx_models.training.recipe import Recipe
from gptx_models.training.run_state import Progress, full_weights, read_state, write_state
from gptx_models.training.schedule import learning_rate
from gptx_models.training.torch_compile import compiled

Batch = tuple[
    Tensor, Tensor
]  # inputs and targets, each (B, S) int64; IGNORED where nothing is trained
LOG_EVERY = 10  # steps from one row of the metrics to the next


@dataclass(frozen=True)
class TrainingData:
    """What is trained from: the batch of a step, and those that are validated on."""

    batch: Callable[[int], Batch]  # the same for the same step, of all processes together
    validation: Callable[[], Iterable[Batch]]
    bytes_per_token: float | None = None  # of the validation text, where it is one
    masked: bool = False  # most targets are IGNORED


@dataclass(frozen=True)
class EvalResult:
    """How far a run has come, as an evaluation found it."""

    steps: int
    tokens: int
    train_loss: (
        float | None
    )  # nats a token, mean since the evaluation before; None: nothing was left to do
    val_loss: float
    bits_per_byte: float | None  # of the validation text: comparable between tokenizers
    seconds: float
    best: bool = True  # no earlier evaluation had a lower val_loss

    def __str__(self) -> str:
        bits = "" if self.bits_per_byte is None else f" ({self.bits_per_byte:.4f} bits a byte)"
        trained = "" if self.train_loss is None else f"loss {self.train_loss:.4f}, "
        return f"{trained}validation {self.val_loss:.4f}{bits}"


def loop(
    gpt: GPT,
    data: TrainingData,
    recipe: Recipe,
    run: Path,
    processes: Processes,
    *,
    on_eval: Callable[[GPT, EvalResult], None],
) -> EvalResult:
    """Step until the recipe's steps or minutes are over, whichever is first, or validation gets no better.

    The state, metrics.csv and loss.png lie in the folder `run`. `on_eval` is called in the main process, with the
    whole model on the CPU, after each evaluation. Raises CheckpointError where the loss is no number or diverges, and
    KeyboardInterrupt, or of SIGTERM SystemExit, with the state written, where the run was interrupted.
    """
    check(recipe, processes)
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
    curve = MetricsLog(run, done=progress.step) if processes.is_main else None
    watch = Watch()
    began, tokens_before = time.perf_counter() - progress.seconds, progress.tokens
    began_here = time.perf_counter()
    losses: list[Tensor] = []  # of the steps since the last row of the metrics, still on the device
    recent: list[float] = []  # since the last evaluation
    outcome: EvalResult | None = None

    def share() -> float:
        """How much of the run is over, by steps or by time."""
        by_time = (time.perf_counter() - began) / 60 / recipe.minutes
        by_time = 0.0 if math.isinf(recipe.minutes) else processes.from_main(by_time)
        return min(max(progress.step / recipe.steps, by_time), 1.0)

    def log(norm: Tensor, rate: float) -> MetricsRow:
        values = processes.total(torch.stack(losses)).tolist()
        watch.check(values, progress.step)
        recent.extend(values)
        losses.clear()
        seconds = time.perf_counter() - began
        return MetricsRow(
            progress.step, progress.tokens, seconds, rate, sum(values) / len(values), _number(norm)
        )

    def evaluation(point: MetricsRow) -> EvalResult:
        val_loss = evaluate(objective, data, recipe, processes)
        best = val_loss < progress.best
        progress.best, progress.since_best = (
            min(val_loss, progress.best),
            0 if best else progress.since_best + 1,
        )
        bits = val_loss / math.log(2) / data.bytes_per_token if data.bytes_per_token else None
        progress.seconds, progress.scale = time.perf_counter() - began, scaler.get_scale()
        now = EvalResult(
            progress.step,
            progress.tokens,
            sum(recent) / len(recent),
            val_loss,
            bits,
            progress.seconds,
            best,
        )
        whole = full_weights(gpt, processes)
        if curve:
            curve.add(MetricsRow(**{**vars(point), "val_loss": val_loss, "bits_per_byte": bits}))
            curve.draw()
            note(
                f"step {now.steps}: {now}, {speed():,.0f} tokens/s, {time_left(done, now.seconds)}"
            )
            on_eval(
                whole, now
            )  # before the state: a run that is killed in between saves once more, not never
        write_state(run, gpt, optimizers, progress, processes)
        recent.clear()
        return now

    def speed() -> float:
        return (progress.tokens - tokens_before) / (time.perf_counter() - began_here)

    told = ""  # of the latest row of the metrics
    with (
        stage("Training", total=1.0, quiet=not processes.is_main) as advance,
        interruptible() as interrupted,
    ):
        advance(done := share())
        # one step at least, however short the time: a run always writes a checkpoint
        while not progress.step or (
            done < 1 and not (recipe.patience and progress.since_best >= recipe.patience)
        ):
            rate = learning_rate(progress.step, done, recipe)
            set_learning_rate(optimizers, rate)
            batch = data.batch(progress.step)
            loss, norm = update(model, optimizers, scaler, batch, recipe, processes, progress.step)
            losses.append(loss)
            progress.step += 1
            progress.tokens += batch[0].numel()
            before, done = done, share()
            advance(done - before, f"step {progress.step}{told}")
            point = None
            due = progress.step % recipe.eval_every == 0 or done >= 1
            if due or progress.step % LOG_EVERY == 0:
                point = log(norm, rate)
                told = f", loss {point.train_loss:.3f}, {speed():,.0f} tokens/s"
                if due:
                    outcome = evaluation(point)
                elif curve:
                    curve.add(point)
            if (point or processes.size == 1) and processes.any(bool(interrupted)):
                progress.seconds = time.perf_counter() - began
                write_state(run, gpt, optimizers, progress, processes)
                if processes.is_main:
                    note("stopped: the same command goes on from here")
                if signal.SIGTERM in interrupted:
                    raise SystemExit(128 + signal.SIGTERM)
                raise KeyboardInterrupt
    if outcome is None:
        if processes.is_main:
            note(
                f"nothing is left to do: the run ended at step {progress.step}; --force begins again"
            )
        val_loss = evaluate(objective, data, recipe, processes)
        bits = val_loss / math.log(2) / data.bytes_per_token if data.bytes_per_token else None
        outcome = EvalResult(
            progress.step, progress.tokens, None, val_loss, bits, progress.seconds, best=False
        )
    return outcome


def update(
    model: nn.Module,
    optimizers: list[Optimizer],
    scaler: torch.GradScaler,
    batch: Batch,
    recipe: Recipe,
    processes: Processes,
    step: int,
) -> tuple[Tensor, Tensor]:
    """One step: this process's part of the batch's mean loss, and the norm of the whole gradient."""
    torch.manual_seed((recipe.seed << 32) + step * processes.size + processes.rank)  # dropout
    inputs, targets = batch
    n_targets = int((targets != IGNORED).sum())
    mine = slice(processes.rank, None, processes.size)
    pieces = list(
        zip(inputs[mine].chunk(recipe.accumulate), targets[mine].chunk(recipe.accumulate))
    )
    model.train()
    loss = torch.zeros((), device=processes.device)
    for at, (piece, answers) in enumerate(pieces, 1):
        processes.synchronize(model, at == len(pieces))
        with autocast(processes, recipe):
            part = (
                model(_moved(piece, processes.device), _moved(answers, processes.device))
                / n_targets
            )
        scaler.scale(
            part * processes.size
        ).backward()  # gradients are averaged over processes, and these parts add up
        loss += part.detach()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    for optimizer in optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    return loss, norm


def autocast(processes: Processes, recipe: Recipe) -> torch.autocast:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(
        processes.device.type, kinds.get(recipe.precision), enabled=recipe.precision in kinds
    )


@torch.no_grad()
def evaluate(
    objective: Objective, data: TrainingData, recipe: Recipe, processes: Processes
) -> float:
    """Mean loss of the validation batches; nats a token. Sets eval mode."""
    objective.eval()
    total, count = torch.zeros((), dtype=torch.float64), 0
    mine = slice(processes.rank, None, processes.size)
    for inputs, targets in data.validation():
        with autocast(processes, recipe):
            total += objective(
                _moved(inputs[mine], processes.device), _moved(targets[mine], processes.device)
            ).item()
        count += int((targets != IGNORED).sum())
    return float(processes.total(total.float().to(processes.device))) / count


class Watch:
    """Stops a run whose loss is no number, or far above what it has been."""

    def __init__(self) -> None:
        self.lowest = math.inf

    def check(self, losses: list[float], step: int) -> None:
        """`losses` are of the last steps before `step`. Raises CheckpointError."""
        first = step - len(losses)
        for at, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise CheckpointError(
                    f"the loss is {loss} at step {at}: lower the learning_rate and begin again with --force;"
                    " what was saved before is still good"
                )
        mean = sum(losses) / len(losses)
        if mean > 1.5 * self.lowest + 1.0:
            raise CheckpointError(
                f"the loss diverges: {mean:.2f} at step {step}, and it was {self.lowest:.2f} before: lower the"
                " learning_rate, or raise warmup, and begin again with --force; what was saved before is still good"
            )
        if len(losses) == LOG_EVERY:  # fewer are too noisy to compare with
            self.lowest = min(self.lowest, mean)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of stopping in the middle of a step; a second one stops at once."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {
            number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not the main thread: signals are somebody else's
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def time_left(done: float, seconds: float) -> str:
    if done >= 1:
        return f"{seconds / 60:.1f} min in all"
    return f"{seconds / 60:.1f} min, {seconds / 60 * (1 - done) / max(done, 1e-9):.1f} left"


def check(recipe: Recipe, processes: Processes) -> None:
    """Raise UsageError for settings that do not go together."""
    if processes.shard and (recipe.optimizer == "muon" or recipe.precision == "fp16"):
        raise UsageError(
            "--shard goes with optimizer adamw and precision bf16 or fp32: Muon needs whole matrices"
        )
    if recipe.batch_size % (recipe.accumulate * processes.size):
        pieces = f"{recipe.accumulate} pieces" if recipe.accumulate > 1 else ""
        shares = f"{processes.size} processes" if processes.size > 1 else ""
        among = " times ".join(filter(None, (shares, pieces)))
        raise UsageError(f"batch_size {recipe.batch_size} does not divide into {among}")


def _number(norm: Tensor) -> float:
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _moved(ids: Tensor, device: torch.device) -> Tensor:
    return ids.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ids
