"""The training loop: text files and a recipe in, a checkpoint folder out.

A run that is stopped goes on from its last state with the same losses: what a step reads and draws depends on its
number alone. (Where `minutes` end the run, the learning rate follows the clock, and two runs are only alike.)
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gptx.cpu import cpu_name
from gptx.errors import CheckpointError, UsageError
from gptx.folders import check_output, new_folder
from gptx.progress import note, stage
from gptx_models import corpus
from gptx_models.checkpoint import SOURCE, load_config, load_model, save_checkpoint
from gptx_models.corpus import Corpus, prepare
from gptx_models.data import batches
from gptx_models.model import GPT
from gptx_models.recipe import Recipe
from gptx_models.tensor_files import read_json

STATE = "state.pt"


@dataclass(frozen=True)
class Outcome:
    """How far a run has come."""

    steps: int
    tokens: int
    train_loss: float  # nats a token, mean of the last 100 steps
    val_loss: float
    bits_per_byte: float  # of the validation text
    seconds: float


def run_folder(out: Path) -> Path:
    """Where the state and tokens of the run that writes `out` lie: beside it."""
    out = Path(os.path.abspath(out))
    return out.with_name(out.name + ".run")


def train(
    files: list[Path],
    out: Path,
    recipe: Recipe,
    *,
    validation: Path | None = None,
    tokenizer: Path | None = None,
    start: Path | None = None,
    licence: str | None = None,
    force: bool = False,
) -> Outcome:
    """Train on `files` and write the checkpoint folder `out`, anew at every evaluation.

    A run that lies in OUT.run goes on where it stopped; `force` begins again instead, and replaces `out`.
    validation, tokenizer: see `prepare`. start: a checkpoint folder of the recipe's shape, whose weights and tokenizer
    are trained on. licence: of the text, for the model card.
    """
    if start is not None:
        if tokenizer is not None:
            raise UsageError("a start has its own tokenizer: leave --tokenizer out")
        tokenizer = start / "tokenizer.json"
    run = run_folder(out)
    check_output(out, force=force or (run / STATE).exists())
    if force:
        for name in (STATE, *corpus.FILES):
            (run / name).unlink(missing_ok=True)
    if (run / STATE).exists() and not (run / corpus.RUN).exists():
        raise CheckpointError(
            f"{run} has a {STATE} and no {corpus.RUN}, so its texts are unknown: begin again with --force"
        )
    run.mkdir(parents=True, exist_ok=True)
    data = prepare(files, run, recipe, validation=validation, tokenizer=tokenizer)
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), data.end) if data.end is not None else {}
    source = {
        "format": "gptx-train",
        "name": ", ".join(dict.fromkeys(file.name for file in files)),
        "licence": licence,
        "recipe": {name: value for name, value in dataclasses.asdict(recipe).items() if value != math.inf},
        "cpu": cpu_name(),
    }
    if start is not None:
        source["start"] = read_json(start / SOURCE) if (start / SOURCE).exists() else {"name": start.name}

    def save(gpt: GPT, outcome: Outcome) -> None:
        with new_folder(out, force=True) as folder:
            save_checkpoint(
                gpt,
                folder,
                tokenizer_files=run,
                source={**source, "training": dataclasses.asdict(outcome)},
                generation={**tokens, **recipe.generation},
            )

    torch.manual_seed(recipe.seed)
    config = recipe.config(data.vocab_size)
    if start is not None and load_config(start) != config:
        raise UsageError(
            f"{start} has another shape than the recipe: --set model.n_layer=... and the like make them one"
        )
    gpt = GPT(config) if start is None else load_model(start)
    return loop(gpt, data, recipe, run / STATE, save)


def loop(gpt: GPT, data: Corpus, recipe: Recipe, state_file: Path, save: Callable[[GPT, Outcome], None]) -> Outcome:
    """Step until the recipe's steps or minutes are over, whichever is first; evaluate and save now and then."""
    optimizer = torch.optim.AdamW(decay_groups(gpt, recipe.weight_decay), betas=(0.9, 0.95), fused=True)
    step, spent = resume(state_file, gpt, optimizer)
    n_ctx, limit = gpt.config.n_ctx, recipe.minutes * 60
    source = batches(data.train, batch_size=recipe.batch_size, n_ctx=n_ctx, seed=recipe.seed, start=step)
    began, losses = time.perf_counter() - spent, deque[float](maxlen=100)

    def share() -> float:
        """How much of the run is over, by steps or by time: the learning rate's decay ends when the run does."""
        return max(step / recipe.steps, (time.perf_counter() - began) / limit)

    def outcome() -> Outcome:
        train_loss = float(np.mean(losses)) if losses else math.nan
        val_loss = evaluate(gpt, data.val, recipe)
        bits = val_loss * len(data.val) / math.log(2) / data.val_bytes  # comparable between tokenizers
        seconds = time.perf_counter() - began
        return Outcome(step, step * recipe.batch_size * n_ctx, train_loss, val_loss, bits, seconds)

    now = None
    with stage("Training", total=1.0) as advance:
        advance(shown := share())
        while (done := share()) < 1:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, done, recipe)
            losses.append(update(gpt, optimizer, *next(source), recipe, step))
            step += 1
            if step % recipe.eval_every == 0 or share() >= 1:
                now = outcome()
                note(line(now))
                write_state(state_file, gpt, optimizer, step, now.seconds)
                save(gpt, now)
            advance(done - shown)
            shown = done
    return now if now is not None else outcome()


def update(
    gpt: GPT, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, recipe: Recipe, step: int
) -> float:
    """One step on a batch; its loss."""
    torch.manual_seed(recipe.seed + step)  # dropout
    loss = loss_of(gpt.train(), inputs, targets, recipe.bf16)
    if not torch.isfinite(loss):
        raise CheckpointError(
            f"the loss is {loss.item()} at step {step}: lower the learning_rate; what was saved before is still good"
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(gpt.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def loss_of(gpt: GPT, inputs: Tensor, targets: Tensor, bf16: bool) -> Tensor:
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
        logits = gpt(inputs)  # (B, S, V)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def learning_rate(step: int, done: float, recipe: Recipe) -> float:
    """Warm-up, then a cosine from the recipe's learning rate to a tenth of it; `done` is the share that is over."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(done, 1.0))))


def decay_groups(gpt: GPT, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, gains and biases don't."""
    matrices = [p for p in gpt.parameters() if p.ndim >= 2]
    rest = [p for p in gpt.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


@torch.no_grad()
def evaluate(gpt: GPT, tokens: np.ndarray, recipe: Recipe) -> float:
    """Mean loss over all of `tokens`, in windows of the context, none overlapping; nats a token. Sets eval mode."""
    n_ctx, total = gpt.config.n_ctx, 0.0
    gpt.eval()
    for at in range(0, len(tokens) - 1, n_ctx):
        window = torch.from_numpy(tokens[at : at + n_ctx + 1].astype(np.int64))[None]
        total += loss_of(gpt, window[:, :-1], window[:, 1:], recipe.bf16).item() * (window.shape[1] - 1)
    return total / (len(tokens) - 1)


def line(now: Outcome) -> str:
    return (
        f"step {now.steps}: loss {now.train_loss:.4f}, validation {now.val_loss:.4f}"
        f" ({now.bits_per_byte:.4f} bits a byte), {now.tokens / now.seconds:,.0f} tokens/s, {now.seconds / 60:.1f} min"
    )


def resume(file: Path, gpt: GPT, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Load the state in `file`, if it is there; the steps it has done and the seconds they took."""
    if not file.exists():
        return 0, 0.0
    try:
        state = torch.load(file, weights_only=True)
        gpt.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:  # torch names neither the file nor what to do
        raise CheckpointError(f"{file} cannot be read ({error}): begin again with --force") from error
    note(f"going on from step {state['step']}")
    return state["step"], state["seconds"]


def write_state(file: Path, gpt: GPT, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Whole or not at all."""
    part = file.with_suffix(".part")
    state = {"model": gpt.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, part)
    os.replace(part, file)
