"""Model.generate and Model.stream: limits, ends, batches, seeds, and the fields of a Completion."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptx
from builders.tiny_artifact import change_embedding, write_artifact
from gptx.errors import ArtifactError, PromptError, UsageError
from gptx.generation.prompt import is_batch
from gptx.kv_cache.feed import Feed
from gptx.kv_cache.rows import Rows
from gptx.model import Model

PROMPTS = ["the cat sat", "a", "on the log and the mat"]


@pytest.fixture(scope="module", params=["shared", "growing", "scatter"])
def model(request: pytest.FixtureRequest, artifacts: dict[str, Path]) -> Model:
    return gptx.load(artifacts[request.param], threads=1)


@pytest.fixture(scope="module")
def shared(artifacts: dict[str, Path]) -> Model:
    return gptx.load(artifacts["shared"], threads=1)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose texts are never ended by a token."""
    return gptx.load(write_artifact(tmp_path_factory.mktemp("endless") / "a", eos=[]), threads=1)


def by_hand(model: Model, prompt: str, n: int) -> list[int]:
    """Greedy tokens without a KV cache: the whole text is fed again for each token."""
    assert model.tokenizer is not None
    known = model.manifest.tokens.vocab_size
    ids = model.tokenizer.encode(prompt)
    new: list[int] = []
    while len(new) < n and 0 not in new:
        with model.session() as session:
            new.append(int(session.feed([ids + new])[0, :known].argmax()))
    return new


def test_greedy(model: Model) -> None:
    for prompt in PROMPTS:
        completion = model.generate(prompt, max_new_tokens=12)
        assert completion.token_ids == by_hand(model, prompt, 12)
        assert model.tokenizer is not None
        assert completion.text == model.tokenizer.decode(completion.token_ids)
        assert completion.prompt_tokens == len(model.tokenizer.encode(prompt))
        assert completion.seed is None


def test_a_batch_is_each_prompt_alone(model: Model) -> None:
    alone = [model.generate(prompt, max_new_tokens=15) for prompt in PROMPTS]
    batch = model.generate(PROMPTS, max_new_tokens=15)
    assert [c.token_ids for c in batch] == [c.token_ids for c in alone]
    assert [c.text for c in batch] == [c.text for c in alone]
    assert [c.finish_reason for c in batch] == [c.finish_reason for c in alone]


def test_a_sampled_batch_is_each_prompt_alone_with_its_seed(model: Model) -> None:
    batch = model.generate(PROMPTS, max_new_tokens=20, temperature=1.2, top_p=0.95, seed=5)
    assert [c.seed for c in batch] == [5, 6, 7]
    for prompt, one in zip(PROMPTS, batch):
        alone = model.generate(
            prompt, max_new_tokens=20, temperature=1.2, top_p=0.95, seed=one.seed
        )
        assert alone.token_ids == one.token_ids


def test_rows_that_end_early_leave_the_others_as_they_are(endless: Model) -> None:
    alone = [endless.generate(prompt, max_new_tokens=25).token_ids for prompt in PROMPTS]
    stop = alone[0][2]
    batch = endless.generate(PROMPTS, max_new_tokens=25, stop_tokens=[stop])
    for whole, one in zip(alone, batch):
        expected = whole[: whole.index(stop) + 1] if stop in whole else whole
        assert one.token_ids == expected
        assert one.finish_reason == ("stop" if stop in whole else "length")
    assert batch[0].token_ids[-1] == stop


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_token_that_ends_a_text_is_no_part_of_it(endless: Model, prompt: str) -> None:
    """This also holds for a token that is not special and whose text could be shown."""
    assert endless.tokenizer is not None
    whole = endless.generate(prompt, max_new_tokens=25, temperature=1.0, seed=8).token_ids
    # the last token that occurs for the first time
    last = max(n for n in range(25) if whole[n] not in whole[:n])
    options = {"max_new_tokens": 25, "temperature": 1.0, "seed": 8, "stop_tokens": [whole[last]]}
    stream = endless.stream(prompt, **options)
    shown = "".join(stream)
    for completion in (endless.generate(prompt, **options), stream.completion):
        assert completion.token_ids == whole[: last + 1]
        assert completion.text == endless.tokenizer.decode(whole[:last]) == shown
    assert endless.tokenizer.decode(whole[: last + 1]) != shown


class Clock:
    """A clock that only the model advances: 5 s for a prompt, 0.25 s for a decode step."""

    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, run = Clock(), Rows.run

    def timed(rows: Rows, feeds: Sequence[Feed]) -> list[np.ndarray]:
        clock.now += 5.0 if any(len(feed.ids) > 1 for feed in feeds) else 0.25
        return run(rows, feeds)

    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    monkeypatch.setattr(Rows, "run", timed)
    return clock


def test_speed_is_that_of_the_tokens_after_the_first(endless: Model, clock: Clock) -> None:
    stop = endless.generate("the cat sat", max_new_tokens=9).token_ids[4]
    stream = endless.stream("the cat sat", max_new_tokens=9)
    list(stream)
    short = endless.generate("the cat sat", max_new_tokens=9, stop_tokens=[stop])
    assert len(short.token_ids) < 9
    for completion in (stream.completion, short, endless.generate("the cat", max_new_tokens=2)):
        assert (completion.time_to_first_token, completion.tokens_per_second) == (5.0, 4.0)


def test_time_between_the_readers_calls_is_not_the_models(endless: Model, clock: Clock) -> None:
    stream = endless.stream("the cat sat", max_new_tokens=9)
    clock.now += 2
    next(stream)
    for _ in stream:
        clock.now += 1
    assert (stream.completion.time_to_first_token, stream.completion.tokens_per_second) == (
        7.0,
        4.0,
    )


def test_stream_is_generate(model: Model) -> None:
    for options in ({}, {"temperature": 1.0, "seed": 3}, {"stop": ["s", "at"]}):
        stream = model.stream(PROMPTS[0], max_new_tokens=20, **options)
        pieces = list(stream)
        whole = model.generate(PROMPTS[0], max_new_tokens=20, **options)
        assert all(pieces)
        assert "".join(pieces) == stream.completion.text == whole.text
        assert stream.completion.token_ids == whole.token_ids
        assert stream.completion.finish_reason == whole.finish_reason


def test_token_ids_as_the_prompt(shared: Model) -> None:
    assert shared.tokenizer is not None
    ids = shared.tokenizer.encode(PROMPTS[0])
    expected = shared.generate(PROMPTS[0], max_new_tokens=5).token_ids
    assert shared.generate(ids, max_new_tokens=5).token_ids == expected
    assert shared.generate([ids, ids], max_new_tokens=5)[1].token_ids == expected
    assert shared.generate(list(np.array(ids)), max_new_tokens=5).token_ids == expected


def test_max_new_tokens(endless: Model) -> None:
    completion = endless.generate("a", max_new_tokens=7)
    assert (len(completion.token_ids), completion.finish_reason) == (7, "length")
    assert completion.tokens_per_second > 0
    assert 0 < completion.time_to_first_token < 5
    assert endless.generate("a", max_new_tokens=1).tokens_per_second == 0


def test_stream_has_the_limit_of_generate(endless: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptx.engine.loaded_model.MAX_NEW_TOKENS", 5)
    stream = endless.stream("the cat sat")
    for _ in stream:
        pass
    generated = endless.generate("the cat sat")
    assert stream.completion.token_ids == generated.token_ids
    assert stream.completion.finish_reason == generated.finish_reason == "length"
    assert len(generated.token_ids) == 5


def test_to_the_end_of_the_context(endless: Model) -> None:
    stream = endless.stream([1, 2, 3])
    text = "".join(stream)
    completion = stream.completion
    assert completion.finish_reason == "context"
    assert len(completion.token_ids) == 64 - 3 + 1  # the last token is not fed
    assert text == completion.text
    assert endless.generate([1, 2, 3]).finish_reason == "context"
    assert len(endless.generate([1] * 64).token_ids) == 1
    for most, reason in ((5, "length"), (6, "context")):  # there is room for 5
        completion = endless.generate([1] * 60, max_new_tokens=most)
        assert (len(completion.token_ids), completion.finish_reason) == (5, reason)


def test_stop_strings(endless: Model) -> None:
    text = endless.generate("the cat", max_new_tokens=40, temperature=1.0, seed=2).text
    assert text is not None
    stop = text[10:12]
    cut = endless.generate("the cat", max_new_tokens=40, temperature=1.0, seed=2, stop=stop)
    assert cut.text == text[: text.index(stop)]
    assert cut.finish_reason == "stop"
    batch = endless.generate(
        ["the cat", "a"], max_new_tokens=40, temperature=1.0, seed=2, stop=[stop, "never seen"]
    )
    assert batch[0].text == cut.text


def test_min_new_tokens(shared: Model) -> None:
    first = shared.generate("the cat", max_new_tokens=1).token_ids[0]
    assert len(shared.generate("the cat", stop_tokens=[first]).token_ids) == 1
    later = shared.generate(
        "the cat", stop_tokens=[first], min_new_tokens=6, max_new_tokens=10
    ).token_ids
    assert len(later) >= 6
    assert first not in later[:6]


def test_empty_ids_of_a_padded_vocabulary_are_never_picked(tmp_path: Path) -> None:
    model = gptx.load(write_artifact(tmp_path / "a", padding=2000, eos=[]), threads=1)
    known = model.manifest.tokens.vocab_size
    assert known is not None
    sampled = model.generate(["a", "b"], temperature=5.0, seed=1, max_new_tokens=60)
    greedy = model.generate(["a", "b"], max_new_tokens=30)
    assert max(token for c in (*sampled, *greedy) for token in c.token_ids) < known
    with model.session() as session:
        assert session.feed([[known + 5]]).shape == (1, known + 2000)  # they may be in a prompt


@pytest.mark.parametrize("padding", [1, 2])
def test_the_first_empty_id_is_not_picked_where_it_is_the_likeliest(
    padding: int, tmp_path: Path
) -> None:
    folder = write_artifact(tmp_path / "a", padding=padding, eos=[])
    with gptx.load(folder, threads=1) as model:
        known = model.manifest.model.vocab_size - padding
        with model.session() as session:
            best = int(session.feed([[1, 2, 3]])[0, :known].argmax())
    # The padded id `known` gets twice the logit of the best token.
    change_embedding(folder, lambda table: table.__setitem__(known, 2 * table[best]))
    model = gptx.load(folder, threads=1)
    with model.session() as session:
        assert session.feed([[1, 2, 3]])[0].argmax() == known
    for options in ({}, {"temperature": 1.0, "top_k": 1, "seed": 1}, {"temperature": 1e-6}):
        # A padded id is sampled only if it ends the text.
        for stops in ([], [known + padding - 1]):
            found = model.generate([1, 2, 3], max_new_tokens=1, stop_tokens=stops, **options)
            assert found.token_ids == [known if known in stops else best]


def test_leaving_a_stream_early(endless: Model) -> None:
    with endless.stream("the cat", temperature=1.0, seed=4) as stream:
        pieces = [next(stream) for _ in range(3)]
        assert stream.completion.finish_reason is None  # the stream has not ended
    completion = stream.completion
    assert completion.text == "".join(pieces)
    assert completion.finish_reason == "closed"
    assert list(stream) == []


def test_generation_config_is_used(tmp_path: Path) -> None:
    generation = {"do_sample": True, "temperature": 0.9, "max_new_tokens": 4}
    model = gptx.load(write_artifact(tmp_path / "a", generation=generation, eos=[]), threads=1)
    completion = model.generate("the")
    assert len(completion.token_ids) == 4
    assert completion.seed is not None
    assert model.generate("the", seed=completion.seed).token_ids == completion.token_ids
    assert model.generate("the", temperature=0).seed is None


def test_without_a_tokenizer(tmp_path: Path) -> None:
    model = gptx.load(write_artifact(tmp_path / "a", tokenizer=False), threads=1)
    assert model.tokenizer is None
    completion = model.generate([1, 2, 3], max_new_tokens=5)
    assert completion.text is None
    assert len(completion.token_ids) == 5
    stream = model.stream([1, 2, 3], max_new_tokens=5)
    assert list(stream) == []
    assert stream.completion.token_ids == completion.token_ids
    for refused in (lambda: model.generate("text"), lambda: model.chat()):
        with pytest.raises(UsageError, match="no tokenizer"):
            refused()


@pytest.mark.parametrize(
    ("prompt", "options", "error", "says"),
    [
        ("", {}, PromptError, "the prompt is empty"),
        ([], {}, PromptError, "the prompt is empty"),
        (["a", ""], {}, PromptError, "the prompt is empty"),
        ([[1], []], {}, PromptError, "prompt 2 of 2 is empty"),
        ([1] * 65, {}, PromptError, "the prompt has 65 tokens, and the model's context holds 64"),
        ([[1], [1] * 70], {}, PromptError, "prompt 2 of 2 has 70 tokens"),
        ([1, 5000], {}, PromptError, "token id 5000 is outside the model's vocabulary"),
        ([1, "a"], {}, PromptError, "a list of token ids, and this one holds 'a'"),
        ("a", {"temperature": -2}, UsageError, "temperature is -2"),
        ("a", {"stop_tokens": [5000]}, UsageError, "stop token 5000"),
    ],
)
def test_what_cannot_be_generated(
    shared: Model, prompt: object, options: dict, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        shared.generate(prompt, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("prompt", "batch"),
    [
        ("a", False),
        ([1, 2], False),
        ([], False),
        (["a"], True),
        ([[1]], True),
        ([np.int64(1)], False),
    ],
)
def test_is_batch(prompt: object, batch: bool) -> None:
    assert is_batch(prompt) is batch  # type: ignore[arg-type]


def test_a_closed_model(artifacts: dict[str, Path]) -> None:
    with gptx.load(artifacts["shared"], threads=1) as model:
        model.generate("a", max_new_tokens=1)
    with pytest.raises(UsageError, match="closed"):
        model.generate("a")


def test_threads_share_a_model(shared: Model) -> None:
    expected = [shared.generate(prompt, max_new_tokens=20).token_ids for prompt in PROMPTS]
    results: dict[int, list[list[int]]] = {}

    def work(index: int) -> None:
        results[index] = [
            shared.generate(prompt, max_new_tokens=20).token_ids
            for prompt in PROMPTS
            for _ in range(3)
        ]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for found in results.values():
        assert found == [ids for ids in expected for _ in range(3)]


def test_logits_of_a_damaged_model(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a")
    change_embedding(folder, lambda table: table.fill(np.nan))
    with pytest.raises(ArtifactError, match="not finite numbers"):
        gptx.load(folder, threads=1).generate("a")


def test_import_is_light() -> None:
    """Importing gptx imports neither numpy nor ONNX Runtime.

    gptx.load and gptx.Chat import none of torch, transformers, onnx and rich.
    """
    code = """
import sys, gptx
heavy = {"numpy", "onnxruntime", "tokenizers", "rich", "jinja2"}
assert not heavy & set(sys.modules), sys.modules.keys()
gptx.load, gptx.Chat
heavy = {"torch", "transformers", "onnx", "rich", "onnxruntime", "jinja2"}
assert not heavy & set(sys.modules), sys.modules.keys()
assert set(gptx.__all__) <= set(dir(gptx))
for name in gptx.__all__:
    getattr(gptx, name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        gptx.lod  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("prompt", [b"the cat", bytearray(b"the cat"), {"a": 1}, None, 5])
def test_a_prompt_of_another_type(artifacts: dict[str, Path], prompt: Any) -> None:
    with gptx.load(artifacts["shared"], threads=1) as model:
        for run in (model.generate, model.stream):
            with pytest.raises(PromptError, match="a prompt is a text or a list of token ids"):
                run(prompt)


@pytest.mark.parametrize("token", [10**30, -1])
def test_a_token_id_beyond_any_number(artifacts: dict[str, Path], token: int) -> None:
    with gptx.load(artifacts["shared"], threads=1) as model:
        for run in (model.generate, model.stream):
            with pytest.raises(PromptError, match="outside the model's vocabulary"):
                run([1, token])
