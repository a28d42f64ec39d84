"""The training loop: equal to a plain PyTorch loop, resumable, in pieces, and where it must
stop.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptx.errors import CheckpointError, UsageError
from gptx_models.data.pretraining import all_windows, random_windows
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT
from gptx_models.training.distributed import Processes
from gptx_models.training.loop import TrainingData, loop
from gptx_models.training.loss import IGNORED, Objective
from gptx_models.training.meters import LOG_EVERY
from gptx_models.training.metrics_log import METRICS, PICTURE, read_metrics
from gptx_models.training.optimizer import optimizers_of, set_learning_rate
from gptx_models.training.recipe import Recipe
from gptx_models.training.run_state import STATE
from gptx_models.training.schedule import learning_rate
from gptx_models.training.step import Batch
from gptx_models.training.validation import EvalResult

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = GPTConfig(vocab_size=32, n_layer=2, n_head=2, n_embd=16, n_ctx=8)
TOKENS = (np.arange(2000) * 7 % 31).astype(np.uint16)
RECIPE = Recipe(
    model={}, steps=24, batch_size=4, warmup=4, eval_every=10, learning_rate=1e-2, precision="fp32"
)


def training_data(**changes) -> TrainingData:
    windows = {"batch_size": 4, "n_ctx": SHAPE.n_ctx}
    usual = TrainingData(
        random_windows(TOKENS, seed=1, **windows), lambda: all_windows(TOKENS[:99], **windows), 2.0
    )
    return dataclasses.replace(usual, **changes)


def run(
    folder: Path, recipe: Recipe = RECIPE, given: TrainingData | None = None, **shape
) -> tuple[GPT, EvalResult]:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    gpt = GPT(dataclasses.replace(SHAPE, **shape))
    outcome = loop(
        gpt,
        given or training_data(),
        recipe,
        folder,
        Processes(torch.device("cpu")),
        on_eval=lambda *_: None,
    )
    return gpt, outcome


def weights(gpt: GPT) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in gpt.parameters()])


def losses(folder: Path) -> list[tuple[int, float, float | None]]:
    return [(p.step, p.train_loss, p.val_loss) for p in read_metrics(folder)]


def test_is_what_a_plain_loop_does(tmp_path: Path):
    gpt, outcome = run(tmp_path)
    torch.manual_seed(1)
    plain, batch = GPT(SHAPE), random_windows(TOKENS, batch_size=4, n_ctx=8, seed=1)
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    rest = [p for p in plain.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step in range(24):
        rate = (
            1e-2 * (step + 1) / 4
            if step < 4
            else 1e-2 * (0.55 + 0.45 * math.cos(math.pi * step / 24))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = batch(step)
        loss = F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(gpt), weights(plain), atol=1e-4, rtol=1e-3)
    rows = torch.from_numpy(TOKENS[:99].astype(np.int64))
    with torch.no_grad():
        sums = [
            F.cross_entropy(
                plain(rows[None, at : at + 9][:, :-1])[0], rows[at + 1 : at + 9], reduction="sum"
            )
            for at in range(0, 98, 8)
        ]
    assert outcome.val_loss == pytest.approx(float(sum(sums)) / 98, rel=1e-3)
    assert outcome.bits_per_byte == pytest.approx(outcome.val_loss / math.log(2) / 2.0)
    assert (outcome.steps, outcome.tokens) == (24, 24 * 4 * 8)


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "muon"}, {"precision": "bf16"}, {"precision": "fp16"}]
)
def test_a_stopped_run_goes_on_with_the_same_losses(changes: dict, tmp_path: Path):
    recipe = dataclasses.replace(RECIPE, **changes)
    whole, _ = run(tmp_path / "whole", recipe, dropout=0.1)

    def broken(step: int) -> Batch:
        if step == 17:
            raise MemoryError  # the process dies between two evaluations
        return training_data().batch(step)

    with pytest.raises(MemoryError):
        run(tmp_path / "broken", recipe, training_data(batch=broken), dropout=0.1)
    again, _ = run(tmp_path / "broken", recipe, dropout=0.1)
    assert torch.equal(weights(again), weights(whole))
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_an_interrupted_run_goes_on_where_it_was(
    number: int, ends: type[BaseException], tmp_path: Path
):
    """Its exit status says which signal it was, 130 or 143."""
    whole, _ = run(tmp_path / "whole")

    def interrupted(step: int) -> Batch:
        if step == 13:
            os.kill(os.getpid(), number)
        return training_data().batch(step)

    with pytest.raises(ends) as ended:
        run(tmp_path / "broken", given=training_data(batch=interrupted))
    assert ends is KeyboardInterrupt or ended.value.args == (143,)
    steps: list[int] = []

    def watched(step: int) -> Batch:
        steps.append(step)
        return training_data().batch(step)

    again, _ = run(tmp_path / "broken", given=training_data(batch=watched))
    assert steps == list(range(14, 24))  # the interrupted step was finished and kept
    assert torch.equal(weights(again), weights(whole))


def test_pieces_of_a_batch_are_the_batch(tmp_path: Path):
    once, _ = run(tmp_path / "once")
    pieces, _ = run(tmp_path / "pieces", dataclasses.replace(RECIPE, accumulate=4))
    torch.testing.assert_close(weights(pieces), weights(once), atol=2e-4, rtol=1e-3)


def test_pieces_with_unequal_shares_of_targets_are_the_batch(tmp_path: Path):
    """The mean is over the whole batch's targets, not a mean of means."""

    def masked(step: int) -> Batch:
        inputs, targets = training_data().batch(step)
        targets = targets.clone()
        targets[0, 1:], targets[2, :] = IGNORED, IGNORED
        return inputs, targets

    given = training_data(batch=masked, masked=True)
    once, _ = run(tmp_path / "once", given=given)
    pieces, _ = run(tmp_path / "pieces", dataclasses.replace(RECIPE, accumulate=4), given)
    torch.testing.assert_close(weights(pieces), weights(once), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_the_objective_is_cross_entropy(masked: bool):
    torch.manual_seed(0)
    gpt = GPT(SHAPE)
    inputs, targets = torch.randint(32, (3, 8)), torch.randint(32, (3, 8))
    targets[1, 2:5] = IGNORED
    expected = F.cross_entropy(gpt(inputs).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(Objective(gpt, masked=masked, chunk=5)(inputs, targets), expected)


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("window", [None, 3])
def test_autocast_attention_on_a_cpu_is_the_fused_one(kind: str, window: int | None):
    torch.manual_seed(0)
    config = dataclasses.replace(
        SHAPE, attention=kind, window=window, n_head=4, n_kv_head=2, position="rope"
    )
    gpt = GPT(config).eval()
    inputs = torch.randint(32, (3, 8))
    exact = gpt(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gpt(inputs)
    torch.testing.assert_close(rounded.float(), exact, atol=2e-2, rtol=0)


def test_no_number_for_a_loss_stops_the_run(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"loss is nan at step \d+: lower the learning_rate"):
        run(tmp_path, dataclasses.replace(RECIPE, learning_rate=1e30, clip=1e30, warmup=0))


def test_a_diverging_loss_stops_the_run(tmp_path: Path):
    """From step 60 on the targets are others; the last state is of step 50."""

    def turned(step: int) -> Batch:
        inputs, targets = training_data().batch(step)
        return inputs, (targets if step < 60 else (targets + 11) % 31)

    recipe = dataclasses.replace(RECIPE, steps=100, schedule="constant", eval_every=50)
    with pytest.raises(
        CheckpointError, match="diverges: .* at step 70.*saved before is still good"
    ):
        run(tmp_path, recipe, training_data(batch=turned))
    assert torch.load(tmp_path / STATE)["progress"]["step"] == 50


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path):
    recipe = dataclasses.replace(RECIPE, steps=1000, learning_rate=0.0, eval_every=2, patience=3)
    _, outcome = run(tmp_path, recipe)
    assert (
        outcome.steps == 8 and not outcome.best
    )  # the first evaluation is the best, then three that are not better


def test_minutes_end_a_run_and_its_schedule(tmp_path: Path):
    _, outcome = run(
        tmp_path, dataclasses.replace(RECIPE, steps=10**6, minutes=0.01, eval_every=10**6)
    )
    assert 0 < outcome.steps < 10**6
    assert read_metrics(tmp_path)[-1].learning_rate < 0.2 * RECIPE.learning_rate


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedules(schedule: str):
    recipe = dataclasses.replace(RECIPE, schedule=schedule, warmup=10, decay=0.25, floor=0.1)
    rates = (
        np.array([learning_rate(step, step / 100, recipe) for step in range(101)])
        / recipe.learning_rate
    )
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert (np.diff(rates[10:]) <= 0).all()
    assert rates[100] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    if schedule == "wsd":
        assert (rates[10:76] == 1).all() and rates[88] == pytest.approx(0.1 + 0.9 * 12 / 25)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_past_its_end_a_run_keeps_the_lowest_rate(schedule: str):
    """As the last step of a run that was measured in minutes may be."""
    recipe = dataclasses.replace(RECIPE, schedule=schedule, floor=0.1)
    assert learning_rate(50, 1.5, recipe) == pytest.approx(0.1 * recipe.learning_rate)


def test_muon_by_its_definition():
    """Jordan et al. 2024 with Nesterov's momentum of 0.95: a step is the nearest orthogonal
    matrix, which the optimizer takes from a few products and we from the singular value
    decomposition.
    """
    gpt, random = GPT(SHAPE), torch.Generator().manual_seed(1)
    muon, adamw = optimizers_of(
        gpt, dataclasses.replace(RECIPE, optimizer="muon", weight_decay=0.5)
    )
    weight = gpt.layers[0].mlp.up.weight
    momentum = torch.zeros_like(weight)
    for _ in range(6):
        weight.grad, before = torch.randn(weight.shape, generator=random), weight.detach().clone()
        set_learning_rate([muon, adamw], 0.1)
        muon.step()
        momentum = 0.95 * momentum + weight.grad
        u, _, v = torch.linalg.svd(weight.grad + 0.95 * momentum, full_matrices=False)
        taken = (1 - 0.1 * 0.5) * before - weight.detach()
        assert F.cosine_similarity(taken.flatten(), (u @ v).flatten(), dim=0) > 0.96
    assert {id(p) for group in muon.param_groups for p in group["params"]} == {
        id(linear.weight) for linear in gpt.blocks.modules() if isinstance(linear, torch.nn.Linear)
    }


def test_what_is_frozen_is_no_optimizers():
    gpt = GPT(SHAPE).requires_grad_(False)
    gpt.layers[1].mlp.requires_grad_(True)
    for name in ("adamw", "muon"):
        optimizers = optimizers_of(gpt, dataclasses.replace(RECIPE, optimizer=name))
        found = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
        assert found == {id(p) for p in gpt.layers[1].mlp.parameters()}


def test_a_batch_that_does_not_divide_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="batch_size 4 does not divide into 3 pieces"):
        run(tmp_path, dataclasses.replace(RECIPE, accumulate=3))


def test_the_curve(tmp_path: Path):
    run(tmp_path)
    points = read_metrics(tmp_path)
    assert [p.step for p in points] == [10, 20, 24]
    assert all(p.val_loss and p.bits_per_byte and p.grad_norm > 0 for p in points)
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    cut = (tmp_path / METRICS).read_bytes()[:-30]
    (tmp_path / METRICS).write_bytes(
        cut
    )  # a row that was being written when the process was killed
    assert [p.step for p in read_metrics(tmp_path)] == [10, 20]


def test_rows_between_evaluations(tmp_path: Path):
    run(tmp_path, dataclasses.replace(RECIPE, eval_every=24))
    assert [(p.step, p.val_loss is None) for p in read_metrics(tmp_path)] == [
        (LOG_EVERY, True),
        (2 * LOG_EVERY, True),
        (24, False),
    ]


def test_windows_cover_the_text_once():
    seen = []
    for inputs, targets in all_windows(TOKENS[:99], batch_size=4, n_ctx=8):
        trained = targets != IGNORED
        assert inputs.shape == targets.shape and inputs.shape[1] == 8
        seen += targets[trained].tolist()
        assert ((targets - inputs - 7) % 31 == 0)[trained].all()
    assert seen == TOKENS[1:99].tolist()
