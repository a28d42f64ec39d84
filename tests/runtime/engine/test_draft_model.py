"""A draft model: the same texts, guesses that are used where they pay, limits, errors, memory.

The model is the default one. Its draft model is itself, whose guesses are right, or one of random
weights with a shorter context and a padded vocabulary, whose guesses are wrong.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptx
from builders.gptx_command import gptx as command
from builders.native_graphs import (
    native_kernels,
    native_operators,
    needs_library,
    onnx_runtime_operators,
)
from builders.random_gpt import random_gpt
from builders.tiny_artifact import refresh, write_artifact
from builders.waiting import WAIT, until
from gpt_export.export import export_checkpoint
from gptx.engine import draft_model, speculation
from gptx.errors import ArtifactError, GptxError, UsageError
from gptx.kv_cache.feed import Feed
from gptx.kv_cache.rows import Rows
from gptx.model import DEFAULT_MODEL, Model
from gptx_models.checkpoints.checkpoint import save_checkpoint
from gptx_models.gpt.config import GPTConfig

pytestmark = [needs_library, pytest.mark.usefixtures(native_kernels.__name__)]

PROMPTS = ["Once upon a time", "The cat", "One day a dog ran", "Tom and Lily went"]
GREEDY: dict[str, Any] = {"temperature": 0}
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 3}
PENALIZED: dict[str, Any] = {"temperature": 0.7, "repetition_penalty": 1.3, "seed": 1}
N_CTX, PADDED = 64, 4104  # of the random draft model


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights for the tokenizer of the default model."""
    folder = tmp_path_factory.mktemp("draft")
    config = GPTConfig(vocab_size=PADDED, n_ctx=N_CTX, n_layer=1, n_head=2, n_embd=32)
    save_checkpoint(
        random_gpt(config),
        folder / "checkpoint",
        tokenizer_files=DEFAULT_MODEL,
        source={"format": "test"},
        generation={"eos_token_id": 0},
    )
    export_checkpoint(folder / "checkpoint", folder / "stranger")
    return folder / "stranger"


@pytest.fixture(scope="module")
def plain() -> Iterator[Model]:
    """The model without guesses."""
    with native_operators(), gptx.load(threads=1, speculate=False) as opened:
        yield opened


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guess although the steps of the default model are short."""
    monkeypatch.setattr(speculation, "SHORTEST_STEP", -1.0)


@pytest.fixture
def forced(tried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the draft model guess as much as it can, whether it pays or not."""

    def always(
        rate: float, cost: object, tokens: int, rows: int, most: int, guess: float = 0.0
    ) -> tuple[int, float]:
        return most, guess

    monkeypatch.setattr(speculation, "worth", always)


def texts(model: Model, prompts: Any = PROMPTS, n: int = 60, **options: Any) -> list[list[int]]:
    return [one.token_ids for one in model.generate(prompts, max_new_tokens=n, **options)]


@pytest.mark.usefixtures(forced.__name__)
@pytest.mark.parametrize("threads, options", [(1, GREEDY), (2, SAMPLED), (1, PENALIZED)])
def test_texts_are_the_same(
    plain: Model, stranger: Path, threads: int, options: dict[str, Any]
) -> None:
    """In one call, more than there are rows; and alone, while another grows in the background."""
    expected = texts(plain, **options)
    for draft in (DEFAULT_MODEL, stranger):
        with gptx.load(threads=threads, max_rows=3, draft=draft) as model:
            assert texts(model, **options) == expected
            behind = model.submit(PROMPTS[0], max_new_tokens=60, **options)
            assert texts(model, PROMPTS[1:2], **options) == texts(plain, PROMPTS[1:2], **options)
            assert behind.result(WAIT).token_ids == expected[0]
            assert model.stats().draft_steps > 50


@pytest.mark.usefixtures(forced.__name__)
def test_a_model_guesses_itself_rightly(plain: Model) -> None:
    for options in (GREEDY, SAMPLED, PENALIZED):
        with gptx.load(threads=1, draft=DEFAULT_MODEL) as model:
            assert texts(model, **options) == texts(plain, **options)
            stats = model.stats()
            assert stats.drafted > 150 and stats.accepted > 0.95 * stats.drafted
            assert stats.steps < stats.new_tokens / 3
            completion = model.generate(PROMPTS[0], max_new_tokens=40, **options)
            assert len(completion.token_ids) == 40


@pytest.mark.usefixtures(tried.__name__)
def test_wrong_guesses_are_given_up(plain: Model, stranger: Path) -> None:
    prompt = plain.encode(PROMPTS[0])
    with gptx.load(threads=1, draft=stranger) as model:
        texts(model, [prompt] * 8, n=50, **SAMPLED)
        before = model.stats()
        found = texts(model, [prompt] * 20, n=50, **SAMPLED)
        after = model.stats()
    assert found == texts(plain, [prompt] * 20, n=50, **SAMPLED)
    tries = after.draft_steps - before.draft_steps
    assert 0 < tries < (after.new_tokens - before.new_tokens) / 10


@pytest.mark.usefixtures(forced.__name__)
def test_a_full_context_ends_the_guesses(plain: Model, stranger: Path) -> None:
    steps = []
    for n in (N_CTX - 10, N_CTX + 10, 3 * N_CTX):
        with gptx.load(threads=1, draft=stranger) as model:
            assert texts(model, PROMPTS[:1], n, **SAMPLED) == texts(
                plain, PROMPTS[:1], n, **SAMPLED
            )
            steps.append(model.stats().draft_steps)
            assert texts(model, [[5] * 100], 20, **SAMPLED) == texts(
                plain, [[5] * 100], 20, **SAMPLED
            )
            assert model.stats().draft_steps == steps[-1]  # this prompt is longer than the context
    assert steps[0] < steps[1] == steps[2]


@pytest.mark.usefixtures(forced.__name__)
def test_a_text_that_slides(plain: Model) -> None:
    prompt = [*plain.encode(PROMPTS[0]), *[7] * 400]
    options = {**SAMPLED, "overflow": "slide", "min_new_tokens": 250}
    with gptx.load(threads=1, draft=DEFAULT_MODEL) as model:
        assert texts(model, [prompt], 250, **options) == texts(plain, [prompt], 250, **options)
        stats = model.stats()
        assert stats.accepted > 0.9 * stats.drafted > 100


@pytest.mark.usefixtures(forced.__name__)
def test_an_id_that_the_draft_model_lacks(stranger: Path) -> None:
    prompts = [[5, 6, PADDED - 1, 7], [5, 6, 7]]
    with gptx.load(stranger, threads=1, speculate=False) as alone:
        expected = texts(alone, prompts, 30)
    with gptx.load(stranger, threads=1, draft=DEFAULT_MODEL) as model:
        assert texts(model, prompts, 30) == expected
        assert model.stats().draft_steps > 0


@pytest.mark.usefixtures(forced.__name__)
def test_a_text_with_a_grammar_and_an_apps_functions(plain: Model) -> None:
    pytest.importorskip("llguidance")
    options: dict[str, Any] = {**SAMPLED, "max_new_tokens": 40}
    seen: list[int] = []

    def watch(tokens: list[int], logits: np.ndarray) -> None:
        seen.append(len(tokens))

    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}}}
    with gptx.load(threads=1, draft=DEFAULT_MODEL) as model:
        for more in ({"json_schema": schema}, {"logits_processor": watch}, {"logprobs": True}):
            found = model.generate(PROMPTS[0], **options, **more)
            expected = plain.generate(PROMPTS[0], **options, **more)
            assert found.token_ids == expected.token_ids
            assert found.logprobs == expected.logprobs
        assert model.stats().draft_steps > 0
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]  # no call for guesses


def draft_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of tokens of each run of a draft model."""
    runs: list[int] = []
    run, drafts = Rows.run, draft_model.DraftModel.drafts

    def counted(rows: Rows, feeds: Sequence[Feed]) -> list[np.ndarray]:
        runs.append(sum(len(feed.ids) for feed in feeds))
        return run(rows, feeds)

    def watched(model: Any, *args: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Rows, "run", counted)
            return drafts(model, *args)

    monkeypatch.setattr(draft_model.DraftModel, "drafts", watched)
    return runs


@pytest.mark.usefixtures(forced.__name__)
def test_the_draft_model_reads_long_prompts_in_pieces(
    plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a text beside it does not wait until all of it has been read."""
    runs = draft_runs(monkeypatch)
    prompts = [plain.encode(PROMPTS[0]), [9] * 300]
    expected = texts(plain, prompts, 100, **SAMPLED)
    with gptx.load(threads=1, draft=DEFAULT_MODEL) as model:
        assert texts(model, prompts, 100, **SAMPLED) == expected
        assert 16 < max(runs) <= 32
        runs.clear()
        alone = [[8] * 300]
        assert texts(model, alone, 100, **SAMPLED) == texts(plain, alone, 100, **SAMPLED)
        assert max(runs) >= 300  # at once


@pytest.mark.usefixtures(forced.__name__)
def test_the_draft_model_reads_a_beginning_once(
    plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [*plain.encode(PROMPTS[0]), *range(100, 300)]
    with gptx.load(threads=1, draft=DEFAULT_MODEL) as model:
        texts(model, [prompt], **SAMPLED)
        runs = draft_runs(monkeypatch)
        again = [*prompt, *range(20)]
        assert texts(model, [again], **SAMPLED) == texts(plain, [again], **SAMPLED)
        assert 20 <= max(runs) < 30
        model.engine.forget()
        assert model.stats().prefix_bytes == 0
        runs.clear()
        assert texts(model, [again], **SAMPLED) == texts(plain, [again], **SAMPLED)
        assert max(runs) > 200


@pytest.mark.usefixtures(forced.__name__)
def test_cancelled_and_interrupted_texts(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with gptx.load(threads=1, max_rows=2, draft=DEFAULT_MODEL) as model:
        growing = [model.submit(one, max_new_tokens=400) for one in PROMPTS]
        until(lambda: model.stats().draft_steps >= 20)
        for stream in growing:
            stream.cancel()
        until(lambda: model.stats().rows == 0)
        assert model.stats().cache_bytes == 0
        run, runs = Rows.run, 0

        def interrupted(rows: Rows, feeds: Sequence[Feed]) -> list[np.ndarray]:
            nonlocal runs
            runs += 1
            if runs == 5:
                raise KeyboardInterrupt
            return run(rows, feeds)

        monkeypatch.setattr(Rows, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate(PROMPTS[0], max_new_tokens=60, **GREEDY)
        assert model.stats().cache_bytes == 0
        assert texts(model, **GREEDY) == texts(plain, **GREEDY)


@pytest.mark.usefixtures(forced.__name__)
def test_logits_that_are_no_numbers_give_no_guesses(
    plain: Model, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = draft_model._sample

    def damaged(wanted: draft_model.Wanted, logits: np.ndarray) -> int | None:
        return sample(wanted, np.full_like(logits, np.nan))

    monkeypatch.setattr(draft_model, "_sample", damaged)
    with gptx.load(threads=1, draft=stranger) as model:
        assert texts(model, **SAMPLED) == texts(plain, **SAMPLED)


@pytest.mark.usefixtures(forced.__name__)
def test_memory(plain: Model) -> None:
    def most(model: Model, prompts: list[str]) -> int:
        """The most memory of the caches while these texts grow."""
        found: list[int] = []

        def watch(token: int, piece: str) -> None:
            stats = model.stats()
            found.append(stats.cache_bytes + stats.prefix_bytes)

        assert texts(model, prompts, on_token=watch, **GREEDY) == texts(plain, prompts, **GREEDY)
        assert model.stats().cache_bytes == 0
        return max(found)

    with gptx.load(threads=1, speculate=False) as alone:
        one_row = most(alone, PROMPTS[:1])
    with gptx.load(threads=1, draft=DEFAULT_MODEL, cache_memory=4 * one_row) as model:
        assert most(model, PROMPTS[:1]) == 2 * one_row
        assert most(model, PROMPTS) == 4 * one_row
        with pytest.raises(GptxError, match="needs .* bytes for its KV cache, and cache_memory is"):
            model.generate(PROMPTS[0], max_new_tokens=500)
    model = gptx.load(threads=1, draft=DEFAULT_MODEL)
    stream = model.submit(PROMPTS[0], max_new_tokens=400)
    until(lambda: model.stats().draft_steps >= 20)
    model.close()
    assert stream.result(WAIT).finish_reason == "closed"
    assert model.stats().cache_bytes == 0


def copied(artifact: Path, folder: Path) -> Path:
    shutil.copytree(artifact, folder)
    return folder


def test_another_vocabulary_is_refused(stranger: Path, tmp_path: Path) -> None:
    tiny = write_artifact(tmp_path / "tiny")
    with pytest.raises(UsageError, match="tiny cannot guess for .*: its vocabulary has .* 4,096"):
        gptx.load(draft=tiny)
    swapped = copied(stranger, tmp_path / "swapped")
    file = swapped / "tokenizer.json"
    tokenizer = json.loads(file.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    one, two = sorted(vocabulary, key=vocabulary.__getitem__)[300:302]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(tokenizer), "utf-8")
    refresh(swapped)
    with pytest.raises(UsageError, match="the vocabularies differ: token 300 is"):
        gptx.load(draft=swapped)
    spaced = copied(stranger, tmp_path / "spaced")  # other bytes, the same tokens
    file = spaced / "tokenizer.json"
    file.write_text(file.read_text("utf-8") + "\n", "utf-8")
    refresh(spaced)
    gptx.load(draft=spaced, threads=1).close()


def test_drafts_that_make_no_sense_are_refused(stranger: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="draft is 5, expected the folder"):
        gptx.load(draft=5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does nothing with speculate=False"):
        gptx.load(draft=stranger, speculate=False)
    with pytest.raises(ArtifactError, match="nothing"):
        gptx.load(draft=tmp_path / "nothing")
    with (
        onnx_runtime_operators(),
        pytest.raises(UsageError, match="a draft model needs native operators.*default_model runs"),
    ):
        gptx.load(draft=stranger)
    without = copied(stranger, tmp_path / "without")
    manifest = json.loads((without / "gptx.json").read_text())
    del manifest["step"]
    (without / "gptx.json").write_text(json.dumps(manifest))
    (without / "onnx/step.onnx").unlink()
    refresh(without)
    with pytest.raises(UsageError, match="a draft model needs native operators.*without runs"):
        gptx.load(draft=without)


def test_the_command_line(stranger: Path, tmp_path: Path) -> None:
    prompt = ("run", "Once upon a time", "-n", "20", "--seed", "1")
    expected = command(*prompt)
    found = command(*prompt, "--draft", stranger)
    assert found.status == expected.status == 0 and found.out == expected.out
    missing = command(*prompt, "--draft", tmp_path / "nothing")
    assert missing.status == 1 and missing.err.count("\n") == 1
