"""The training loop: text files and a recipe in, a checkpoint folder out.

A run that is stopped goes on from its last state with the same losses: batches depend on the step's number alone.
"""

from __future__ import annotations

import math
import os
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gptx.errors import CheckpointError, UsageError
from gptx.folders import new_folder
from gptx.progress import note
from tokenizers import Tokenizer

from gptx_models.checkpoint import save_checkpoint, write_json
from gptx_models.config import GPTConfig
from gptx_models.data import END_OF_TEXT, batches, encode, read_texts, train_tokenizer
from gptx_models.model import GPT

STATE = "state.pt"


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. `model` holds GPTConfig's fields but vocab_size, which the tokenizer decides."""

    model: dict[str, Any]
    steps: int
    vocab_size: int = 4096
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup: int = 100  # steps
    weight_decay: float = 0.1
    clip: float = 1.0  # largest norm of the gradient
    bf16: bool = True
    seed: int = 1
    eval_every: int = 250  # steps
    minutes: float = math.inf  # stop after so long; the schedule then ends with the time
    generation: dict[str, Any] = field(default_factory=dict)  # generation_config.json of the checkpoint


def read_recipe(name: str) -> Recipe:
    """A recipe that ships with gptx, by name, or a TOML file. UsageError names what is wrong with it."""
    shipped = recipe_names()
    file = resources.files("gptx_models.recipes").joinpath(f"{name}.toml") if name in shipped else Path(name)
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"no recipe {name}: give a TOML file, or one of {', '.join(shipped)}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the recipe {name} is not TOML: {error}") from error
    unknown = sorted(set(values) - {f.name for f in fields(Recipe)})
    missing = sorted({"model", "steps"} - set(values))
    if unknown or missing:
        problems = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(missing)
        raise UsageError(f"the recipe {name}: {'; '.join(problems)}")
    return Recipe(**values)


def recipe_names() -> list[str]:
    folder = resources.files("gptx_models.recipes")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


@dataclass(frozen=True)
class Outcome:
    """Where a run ended."""

    steps: int
    tokens: int
    train_loss: float
    val_loss: float  # nats a token
    bits_per_byte: float  # of the validation text
    seconds: float


def train(
    files: list[Path],
    out: Path,
    recipe: Recipe,
    *,
    validation: Path | None = None,
    tokenizer: Path | None = None,
    licence: str | None = None,
    force: bool = False,
) -> Outcome:
    """Train on `files` and write the checkpoint folder `out`; the state to resume from lies in OUT.run beside it.

    validation: a text file; without it the last tenth of the tokens. A run in OUT.run goes on where it stopped.
    """
    run = out.with_name(out.name + ".run")
    run.mkdir(parents=True, exist_ok=True)
    data = prepare(files, run, recipe, validation, tokenizer)
    config = GPTConfig(vocab_size=data.tokenizer.get_vocab_size(), **recipe.model)
    source = {
        "format": "gptx-train",
        "name": ", ".join(file.name for file in files),
        "licence": licence,
        "recipe": {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name != "minutes"},
    }

    def save(gpt: GPT) -> None:
        end = data.tokenizer.token_to_id(END_OF_TEXT)
        tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end} if end is not None else {}
        with new_folder(out, force=force or out.exists()) as folder:
            save_checkpoint(
                gpt, folder, tokenizer_files=run, source=source, generation={**tokens, **recipe.generation}
            )

    return loop(GPT(config), data, recipe, run / STATE, save)


@dataclass(frozen=True)
class Data:
    tokenizer: Tokenizer
    train: np.ndarray  # token ids
    val: np.ndarray
    val_bytes: int  # of UTF-8 text that `val` writes


def prepare(files: list[Path], run: Path, recipe: Recipe, validation: Path | None, given: Path | None) -> Data:
    """The tokenizer (given, or trained on the text) and the tokens, kept in `run` for the next time."""
    tokenizer_file, train_file, val_file = run / "tokenizer.json", run / "train.npy", run / "val.npy"
    if not val_file.exists():
        documents = read_texts(files)
        tokenizer = Tokenizer.from_file(str(given)) if given else train_tokenizer(documents, recipe.vocab_size)
        tokens = encode(tokenizer, documents)
        if validation is not None:
            val = encode(tokenizer, read_texts([validation]))
        else:
            cut = len(tokens) * 9 // 10
            tokens, val = tokens[:cut], tokens[cut:]
        tokenizer.save(str(tokenizer_file))
        end = END_OF_TEXT
        write_json(run / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "bos_token": end, "eos_token": end, "pad_token": end, "unk_token": end})
        write_json(run / "special_tokens_map.json", {"bos_token": end, "eos_token": end, "pad_token": end, "unk_token": end})
        np.save(train_file, tokens)
        np.save(val_file, val)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokens, val = np.load(train_file, mmap_mode="r"), np.load(val_file, mmap_mode="r")
    n_ctx = GPTConfig(vocab_size=1, **recipe.model).n_ctx
    if min(len(tokens), len(val)) <= n_ctx:
        raise UsageError(
            f"{len(tokens)} tokens to train on and {len(val)} to validate with: each must be more than the context, {n_ctx}"
        )
    return Data(tokenizer, tokens, val, len(tokenizer.decode(val.tolist(), skip_special_tokens=True).encode()))


def loop(gpt: GPT, data: Data, recipe: Recipe, state_file: Path, save: Callable[[GPT], None]) -> Outcome:
    """Step until the recipe's steps or minutes are over; save a checkpoint at every evaluation and at the end."""
    torch.manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(decay_groups(gpt, recipe.weight_decay), betas=(0.9, 0.95), fused=True)
    step, spent, val_loss = 0, 0.0, math.inf
    if state_file.exists():
        state = read_state(state_file)
        gpt.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
        note(f"going on from step {step}")
    else:
        gpt.apply(gpt._init)
    n_ctx = gpt.config.n_ctx
    source = batches(data.train, batch_size=recipe.batch_size, n_ctx=n_ctx, seed=recipe.seed, start=step)
    began, losses, limit = time.perf_counter() - spent, [], recipe.minutes * 60
    while step < recipe.steps and time.perf_counter() - began < limit:
        # by steps or by time, whichever is further: the decay ends when the run does
        done = max(step / recipe.steps, (time.perf_counter() - began) / limit)
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, done, recipe)
        inputs, targets = next(source)
        loss = loss_of(gpt.train(), inputs, targets, recipe.bf16)
        if not torch.isfinite(loss):
            raise CheckpointError(f"the loss is {loss.item()} at step {step}: {state_file} holds the last good state")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        step += 1
        if step % recipe.eval_every == 0:
            val_loss = evaluate(gpt, data.val, recipe)
            seconds = time.perf_counter() - began
            speed = step * inputs.numel() / seconds
            note(
                f"step {step}: loss {np.mean(losses[-100:]):.4f}, validation {val_loss:.4f}"
                f" ({bits_per_byte(val_loss, data):.4f} bits a byte), {speed:,.0f} tokens/s, {seconds / 60:.1f} min"
            )
            write_state(state_file, gpt, optimizer, step, seconds)
            save(gpt.eval())
    val_loss = evaluate(gpt, data.val, recipe)
    seconds = time.perf_counter() - began
    write_state(state_file, gpt, optimizer, step, seconds)
    save(gpt.eval())
    tokens = step * recipe.batch_size * n_ctx
    train_loss = float(np.mean(losses[-100:])) if losses else math.nan
    return Outcome(step, tokens, train_loss, val_loss, bits_per_byte(val_loss, data), seconds)


def loss_of(gpt: GPT, inputs: torch.Tensor, targets: torch.Tensor, bf16: bool) -> torch.Tensor:
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
        logits = gpt(inputs)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def schedule(step: int, done: float, recipe: Recipe) -> float:
    """Warm-up, then a cosine from the learning rate to a tenth of it; `done` is the share of the run that is over."""
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
    """Mean loss over all of `tokens`, in windows of the context, none overlapping; nats a token."""
    n_ctx, total, count = gpt.config.n_ctx, 0.0, 0
    gpt.eval()
    for at in range(0, len(tokens) - 1, n_ctx):
        window = torch.from_numpy(tokens[at : at + n_ctx + 1].astype(np.int64))[None]
        loss = loss_of(gpt, window[:, :-1], window[:, 1:], recipe.bf16)
        total += loss.item() * (window.shape[1] - 1)
        count += window.shape[1] - 1
    return total / count


def bits_per_byte(loss: float, data: Data) -> float:
    """Comparable between tokenizers: bits to write the validation text, per byte of it."""
    return loss * len(data.val) / math.log(2) / data.val_bytes


def write_state(file: Path, gpt: GPT, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    part = file.with_suffix(".part")
    state = {"model": gpt.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, part)
    os.replace(part, file)


def read_state(file: Path) -> dict[str, Any]:
    try:
        return torch.load(file, weights_only=True)
    except Exception as error:  # torch names neither the file nor what to do
        raise CheckpointError(f"{file} cannot be read ({error}): remove it to begin again") from error
