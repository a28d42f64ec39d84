"""Many calls of one model at the same time: the same texts, shared steps, early ends, limits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptx
from builders.native_graphs import native_operators, needs_library, onnx_runtime_operators
from builders.tiny_artifact import write_artifact
from gptx.errors import ArtifactError, GptxError, OutputError, PromptError, UsageError
from gptx.kv_cache.feed import Feed
from gptx.kv_cache.rows import Rows
from gptx.model import Model

PROMPTS = [
    "Once upon a time",
    "The cat",
    "One day a dog ran",
    "Tom and Lily went",
    "A big bird saw",
]
WAIT = 60.0  # seconds until a test gives up


@pytest.fixture(scope="module", params=[pytest.param("native", marks=needs_library), "onnxruntime"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    operators = native_operators if request.param == "native" else onnx_runtime_operators
    with operators(), gptx.load(threads=1, max_rows=4) as opened:
        yield opened


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Model]:
    """A model that never ends a text, with a context of 2,000 tokens."""
    folder = write_artifact(tmp_path / "a", n_ctx=2000, eos=[])
    with onnx_runtime_operators(), gptx.load(folder, threads=1, max_rows=2) as opened:
        yield opened


def greedy(model: Model, prompt: Any, n: int = 12) -> list[int]:
    return model.generate(prompt, max_new_tokens=n, temperature=0).token_ids


def in_threads(calls: Sequence[Any]) -> list[Any]:
    """Call all at the same time; their results, or the errors that they raised."""
    found: list[Any] = [None] * len(calls)

    def call(at: int) -> None:
        try:
            found[at] = calls[at]()
        except Exception as error:
            found[at] = error

    threads = [threading.Thread(target=call, args=(at,)) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    return found


def test_calls_of_many_threads_share_steps_and_give_the_same_texts(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [greedy(model, prompt) for prompt in PROMPTS]
    rows_of_steps, run = [], Rows.run

    def counted(rows: Rows, feeds: Sequence[Feed]) -> list[np.ndarray]:
        rows_of_steps.append(len(feeds))
        time.sleep(0.002)  # so that the other threads come
        return run(rows, feeds)

    monkeypatch.setattr(Rows, "run", counted)
    calls = [lambda prompt=prompt: greedy(model, prompt) for prompt in PROMPTS * 2]
    assert in_threads(calls) == alone * 2
    assert max(rows_of_steps) > 1


def test_a_batch_of_more_prompts_than_rows(model: Model) -> None:
    prompts = PROMPTS * 5
    found = model.generate(prompts, max_new_tokens=8, temperature=0)
    assert [one.token_ids for one in found] == [greedy(model, prompt, 8) for prompt in prompts]


def test_a_seed_gives_the_same_text_whatever_else_runs(model: Model) -> None:
    options: dict[str, Any] = {"max_new_tokens": 15, "temperature": 0.9, "top_p": 0.95}
    alone = [model.generate(PROMPTS[n], seed=n, **options).token_ids for n in range(4)]
    calls = [lambda n=n: model.generate(PROMPTS[n], seed=n, **options).token_ids for n in range(4)]
    assert in_threads(calls) == alone


def test_a_long_prompt_stalls_nobody(endless: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other texts grow while it is read."""
    most, run = 0, Rows.run
    stream = endless.stream("the cat", max_new_tokens=100)
    next(stream)

    def watched(rows: Rows, feeds: Sequence[Feed]) -> list[np.ndarray]:
        nonlocal most
        most = max(most, *(len(feed.ids) for feed in feeds))
        return run(rows, feeds)

    monkeypatch.setattr(Rows, "run", watched)
    long = endless.submit([5] * 1500, max_new_tokens=1)
    pieces = 0
    while not long.has_ended():
        pieces += bool(next(stream, ""))
    assert pieces > 10 and most < 100
    assert long.result().prompt_tokens == 1500
    stream.close()


def test_a_reader_who_pauses_stalls_nobody_and_loses_nothing(model: Model) -> None:
    expected = greedy(model, PROMPTS[0], 20)
    paused = model.stream(PROMPTS[0], max_new_tokens=20, temperature=0)
    first = next(paused)
    others = in_threads([lambda prompt=prompt: greedy(model, prompt, 25) for prompt in PROMPTS[1:]])
    assert others == [greedy(model, prompt, 25) for prompt in PROMPTS[1:]]
    assert paused.completion.text == first  # as far as it was read
    text = first + "".join(paused)
    assert paused.completion.token_ids == expected and paused.completion.text == text


def test_submit_goes_on_in_the_background(model: Model) -> None:
    handle = model.submit(PROMPTS[0], max_new_tokens=12, temperature=0)
    deadline = time.monotonic() + WAIT
    while not handle.has_ended() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert handle.result(0).token_ids == greedy(model, PROMPTS[0])
    assert handle.completion.finish_reason == "length"


def test_a_result_that_takes_too_long(endless: Model) -> None:
    handle = endless.submit("the cat", max_new_tokens=1900)
    with pytest.raises(TimeoutError, match="has not ended after 0.01 seconds"):
        handle.result(0.01)
    handle.cancel()
    found = handle.result()
    assert found.finish_reason == "closed" and found.token_ids
    with pytest.raises(UsageError, match="timeout is -1"):
        handle.result(-1)


def test_asyncio(model: Model) -> None:
    expected = [greedy(model, prompt) for prompt in PROMPTS]
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0}

    async def ask() -> tuple[list[Any], list[str], Any]:
        several = await asyncio.gather(*(model.generate_async(one, **options) for one in PROMPTS))
        pieces = [piece async for piece in model.stream_async(PROMPTS[0], **options)]
        return several, pieces, await model.generate_async(PROMPTS, **options)

    several, pieces, batch = asyncio.run(ask())
    assert [one.token_ids for one in several] == expected
    assert [one.token_ids for one in batch] == expected
    assert len(pieces) > 1 and "".join(pieces) == several[0].text


def test_a_task_that_is_cancelled_ends_its_text(endless: Model) -> None:
    async def ask() -> None:
        task = asyncio.create_task(endless.generate_async("the cat"))
        reader = endless.stream_async("a dog")
        await anext(reader)
        await reader.aclose()  # type: ignore[attr-defined]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    wait_until_idle(endless)


def wait_until_idle(model: Model) -> None:
    """Until no request has a row or waits for one, and the cache's memory is free."""
    deadline = time.monotonic() + WAIT
    while (model.stats().rows or model.stats().queue) and time.monotonic() < deadline:
        time.sleep(0.01)
    stats = model.stats()
    assert (stats.rows, stats.queue, stats.cache_bytes) == (0, 0, 0)


@pytest.mark.parametrize("prompt", ["the cat", [5] * 1999])
def test_cancel_from_another_thread(endless: Model, prompt: Any) -> None:
    cancel, found = threading.Event(), []
    thread = threading.Thread(target=lambda: found.append(endless.generate(prompt, cancel=cancel)))
    thread.start()
    while not endless.stats().steps:
        time.sleep(0.001)
    cancel.set()
    thread.join(WAIT)
    assert found[0].finish_reason == "closed"
    wait_until_idle(endless)


def test_cancel_in_the_queue(endless: Model) -> None:
    growing = [endless.submit("the cat") for _ in range(2)]
    waiting = endless.submit("a dog")
    waiting.cancel()
    assert waiting.result().token_ids == [] and waiting.completion.finish_reason == "closed"
    cancel = threading.Event()
    cancel.set()
    for call in (
        lambda: endless.score("the cat", cancel=cancel),
        lambda: endless.classify("the cat", ["a", "b"], cancel=cancel),
    ):
        with pytest.raises(GptxError, match="cancelled"):
            call()
    for stream in growing:
        stream.cancel()
    wait_until_idle(endless)


def test_after_cancel_nothing_more_is_computed(endless: Model) -> None:
    stream = endless.stream("the cat")
    next(stream)
    steps = endless.stats().steps
    stream.close()
    assert list(stream) == [] and endless.stats().steps == steps
    assert endless.stats().rows == 0


def test_max_time(endless: Model) -> None:
    began = time.perf_counter()
    found = endless.generate("the cat", max_time=0.1, max_new_tokens=1900)
    assert found.finish_reason == "time" and found.token_ids
    assert time.perf_counter() - began < WAIT / 10
    growing = [endless.submit("the cat") for _ in range(2)]
    waiting = endless.submit("a dog", max_time=0.05)
    assert waiting.result(WAIT).finish_reason == "time"
    for stream in growing:
        stream.cancel()


def test_max_time_of_the_file(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", n_ctx=2000, eos=[], generation={"max_time": 0.05})
    with gptx.load(folder, threads=1) as model:
        assert model.generate("the cat", max_new_tokens=1900).finish_reason == "time"
        assert model.generate("the cat", max_new_tokens=3, max_time=WAIT).finish_reason == "length"


def test_an_error_in_an_apps_function_ends_its_text_alone(model: Model) -> None:
    def broken(tokens: list[int], logits: np.ndarray) -> None:
        if len(tokens) > 6:
            raise RuntimeError("the app's own")

    def refuses(token: int, piece: str) -> None:
        raise KeyError(piece)

    calls = [
        lambda: greedy(model, PROMPTS[0]),
        lambda: model.generate(PROMPTS[1], logits_processor=broken),
        lambda: model.generate(PROMPTS[2], on_token=refuses),
        lambda: greedy(model, PROMPTS[3]),
    ]
    found = in_threads(calls)
    assert found[0] == greedy(model, PROMPTS[0]) and found[3] == greedy(model, PROMPTS[3])
    assert isinstance(found[1], RuntimeError) and isinstance(found[2], KeyError)


def test_what_apps_hook_in(model: Model) -> None:
    seen: list[tuple[int, str]] = []

    def ban(tokens: list[int], logits: np.ndarray) -> np.ndarray:
        assert tokens[: len(ids)] == ids and logits.dtype == np.float32
        logits[banned] = -np.inf
        return logits

    ids = model.encode(PROMPTS[0])
    banned = greedy(model, PROMPTS[0])[3]
    found = model.generate(
        PROMPTS[0],
        max_new_tokens=12,
        temperature=0,
        logits_processor=ban,
        on_token=lambda token, piece: seen.append((token, piece)),
    )
    assert banned not in found.token_ids
    assert [token for token, _ in seen] == found.token_ids
    assert "".join(piece for _, piece in seen) == found.text
    with pytest.raises(UsageError, match="logits_processor returned 5, expected None or an array"):
        model.generate("a", logits_processor=lambda tokens, logits: 5)  # type: ignore[return-value]


@pytest.mark.parametrize("temperature", [0, 1])
def test_an_app_that_bans_every_token_is_told_so(model: Model, temperature: float) -> None:
    def ban_all(tokens: list[int], logits: np.ndarray) -> None:
        logits.fill(-np.inf)

    with pytest.raises(UsageError, match="forbid every token: .* logits_processor"):
        model.generate("a", temperature=temperature, logits_processor=ban_all)


def test_a_call_from_within_a_step_is_refused(model: Model) -> None:
    def nested(token: int, piece: str) -> None:
        model.generate("a")

    with pytest.raises(UsageError, match="computing a step of the same model already"):
        model.generate("a", on_token=nested)


def test_the_queue_is_bounded(endless: Model) -> None:
    endless.engine._requests.max_queue = 3
    growing = [endless.submit("the cat") for _ in range(2)]
    while endless.stats().rows < 2:
        time.sleep(0.001)
    growing += [endless.submit("the cat") for _ in range(3)]
    with pytest.raises(GptxError, match="the queue is full: 3 requests wait"):
        endless.submit("the cat")
    for stream in growing:
        stream.cancel()
    wait_until_idle(endless)


def test_the_cache_budget_holds(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", n_ctx=2000, eos=[])
    with onnx_runtime_operators(), gptx.load(folder, threads=1) as free:
        alone = free.generate(["the cat", "a dog", "and"], max_new_tokens=40)
        one_row = free.engine._steps.rows.bytes_with(1, 128)
    with gptx.load(folder, threads=1, cache_memory=2 * one_row) as model:
        most = 0

        def watch(token: int, piece: str) -> None:
            nonlocal most
            stats = model.stats()
            most = max(most, stats.cache_bytes + stats.prefix_bytes)

        prompts = ["the cat", "a dog", "and"] * 3
        found = model.generate(prompts, max_new_tokens=40, on_token=watch)
        assert [one.token_ids for one in found] == [one.token_ids for one in alone] * 3
        assert one_row <= most <= 2 * one_row
        with pytest.raises(GptxError, match="needs .* bytes for its KV cache, and cache_memory is"):
            model.generate("the cat", max_new_tokens=1900)
    for wrong in (0, -5, "much", "1 TB", 1.5):
        with pytest.raises(UsageError, match="cache_memory is"):
            gptx.load(folder, cache_memory=wrong)  # type: ignore[arg-type]


def test_a_prompt_that_was_read_is_not_read_again(model: Model) -> None:
    prompt = "Once upon a time there was a little girl called Lily. " * 4
    first = model.generate(prompt, max_new_tokens=5, temperature=0)
    before = model.stats()
    again = model.generate(prompt, max_new_tokens=5, temperature=0)
    after = model.stats()
    assert again.token_ids == first.token_ids
    assert after.prefix_hits == before.prefix_hits + 1
    assert after.prefix_tokens - before.prefix_tokens >= first.prompt_tokens - 2


def test_logits_with_a_stored_beginning_are_the_same_bits(model: Model) -> None:
    """Also behind a beginning that only some of the prompt shares."""
    text = "The dog and the cat went to the park to play with a red ball. " * 3
    ids = model.encode(text)

    def logits(prompt: list[int]) -> np.ndarray:
        seen: list[np.ndarray] = []
        model.generate(
            prompt,
            max_new_tokens=3,
            temperature=0,
            logits_processor=lambda _, array: seen.append(array.copy()),
        )
        return np.stack(seen)

    prompts = [ids, ids[:50], [*ids[:37], 9, 8, 7], [*ids, 5, 6], ids]
    model.engine.forget()
    fresh = []
    for prompt in prompts:
        fresh.append(logits(prompt))
        model.engine.forget()
    for prompt, expected in zip(prompts, fresh):
        np.testing.assert_array_equal(logits(prompt), expected)
    assert model.stats().prefix_hits > 0


def test_close_ends_everything_and_gives_the_memory_back(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", n_ctx=2000, eos=[])
    model = gptx.load(folder, threads=1)
    growing = [model.submit("the cat") for _ in range(3)]
    while model.stats().steps < 5:
        time.sleep(0.001)
    model.close()
    wait_until_idle(model)
    assert model.stats().prefix_bytes == 0
    assert all(stream.result(WAIT).finish_reason == "closed" for stream in growing)
    with pytest.raises(UsageError, match="this model is closed"):
        model.submit("the cat")


def test_stats(model: Model) -> None:
    before = model.stats()
    model.generate("A new text that nobody has read", max_new_tokens=7, temperature=0)
    after = model.stats()
    assert after.new_tokens - before.new_tokens == 7
    assert after.prompt_tokens > before.prompt_tokens
    assert (after.rows, after.queue, after.cache_bytes) == (0, 0, 0)


def test_beginnings_on_the_disk(model: Model, tmp_path: Path) -> None:
    prompt = "Once upon a time there was a boy who had a red kite. " * 6
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0}
    expected = model.generate(prompt, **options)
    model.save_prefixes(tmp_path / "prefixes")
    model.engine.forget()
    model.load_prefixes(tmp_path / "prefixes")
    model.load_prefixes(tmp_path / "prefixes")  # what is there already is not stored twice
    stored, read = model.stats().prefix_bytes, model.stats().prompt_tokens
    assert model.generate(prompt, **options).token_ids == expected.token_ids
    assert model.stats().prompt_tokens - read <= 2
    assert stored == model.stats().prefix_bytes > 0
    model.engine.forget()
    model.save_prefixes(tmp_path / "empty")
    model.load_prefixes(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "prefixes"]


def test_foreign_and_damaged_beginnings(model: Model, tmp_path: Path) -> None:
    model.generate("Once upon a time there was a boy", max_new_tokens=40, temperature=0)
    file = tmp_path / "prefixes"
    model.save_prefixes(file)
    model.engine.forget()
    whole = bytearray(file.read_bytes())
    for at in (0, 5, len(whole) // 3, len(whole) - 5):
        damaged = whole.copy()
        damaged[at] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="prefixes (holds no prefixes|cannot be used)"):
            model.load_prefixes(file)
    file.write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match="damaged"):
        model.load_prefixes(file)
    assert model.stats().prefix_bytes == 0
    file.write_bytes(whole)
    other = write_artifact(tmp_path / "other")
    with (
        gptx.load(other, threads=1) as stranger,
        pytest.raises(ArtifactError, match="another graph"),
    ):
        stranger.load_prefixes(file)
    with pytest.raises(ArtifactError, match="does not exist"):
        model.load_prefixes(tmp_path / "nothing")
    with pytest.raises(OutputError, match="cannot write"):
        model.save_prefixes(tmp_path / "no folder" / "prefixes")


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Model]:
    """A model that never ends a text, with a context of 64 tokens and a chat template."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    folder = write_artifact(tmp_path / "a", n_ctx=64, eos=[], template=template)
    with gptx.load(folder, threads=1) as opened:
        yield opened


def test_a_text_that_slides_is_that_of_a_fresh_prompt(short: Model) -> None:
    prompt = short.encode("the cat sat")
    found = short.generate(prompt, max_new_tokens=150, overflow="slide")
    assert len(found.token_ids) == 150 and found.finish_reason == "length"
    text = [*prompt, *found.token_ids]
    at = 65  # tokens of the text when it has outgrown the context
    while at < len(text):
        window = text[at - 32 : at]
        fresh = short.generate(window, max_new_tokens=33)  # until it has outgrown it again
        following = text[at : at + 33]
        assert fresh.token_ids[: len(following)] == following
        at += 33
    stopped = short.generate(prompt, max_new_tokens=150)
    assert stopped.finish_reason == "context"
    assert found.token_ids[: len(stopped.token_ids)] == stopped.token_ids
    with pytest.raises(UsageError, match="overflow is 'roll', expected stop or slide"):
        short.generate("a", overflow="roll")  # type: ignore[arg-type]


def test_a_chat_that_slides_keeps_its_system_message(short: Model) -> None:
    chat = short.chat(system="be good")
    system = short.chat_ids([{"role": "system", "content": "be good"}])
    for _ in range(6):
        answer = chat.send("tell me more", max_new_tokens=20, overflow="slide")
        assert len(answer.token_ids) == 20 and answer.prompt_tokens <= 64
        assert chat.tokens[: len(system)] == system
    with pytest.raises(PromptError, match="the conversation has"):
        chat.send("tell me more")


def test_logprobs(model: Model) -> None:
    from gptx.softmax import log_softmax

    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.8, "seed": 3}
    plain = model.generate(PROMPTS[0], **options)
    assert plain.logprobs is None and plain.top_logprobs is None
    found = model.generate(PROMPTS[0], logprobs=True, top_logprobs=4, **options)
    assert found.token_ids == plain.token_ids
    assert found.logprobs is not None and found.top_logprobs is not None
    ids = model.encode(PROMPTS[0])
    with model.session() as session:
        logits = session.feed([[*ids, *found.token_ids]], all_logits=True)[0][len(ids) - 1 :]
    for token, logprob, top, row in zip(
        found.token_ids, found.logprobs, found.top_logprobs, logits
    ):
        expected = log_softmax(row.astype(np.float64))
        # ONNX Runtime decodes in another kernel than it reads a text
        close = 1e-4 if model.kernels else 0.2
        assert logprob == pytest.approx(expected[token], abs=close)
        assert list(top.values()) == pytest.approx(np.sort(expected)[:-5:-1], abs=close)
        if not model.kernels:
            continue
        likeliest = np.argsort(-expected, kind="stable")[:4]
        assert list(top) == likeliest.tolist()
    for wrong in ({"logprobs": 1}, {"top_logprobs": 0}, {"top_logprobs": "a"}):
        with pytest.raises(UsageError, match="logprobs is"):
            model.generate("a", **wrong)  # type: ignore[call-overload]


def test_the_process_ends_while_a_text_grows_in_the_background(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", n_ctx=20_000, eos=[])
    code = f"""
import gptx
stream = gptx.load({str(folder)!r}, threads=1).submit("the cat", max_new_tokens=19_000)
next(stream)
"""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=WAIT)
    assert time.perf_counter() - began < WAIT / 2
