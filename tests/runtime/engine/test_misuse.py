"""What apps do wrong, or at the worst moment: it harms their own text alone; nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptx
from builders.native_graphs import native_operators, needs_library
from builders.tiny_artifact import change_embedding, write_artifact
from builders.waiting import WAIT, until, within
from gptx.engine import prefix_cache, speculation
from gptx.engine.stream import Stream
from gptx.errors import (
    ArtifactError,
    GptxError,
    GptxWarning,
    OutputError,
    PromptError,
    QueueFullError,
    UsageError,
)
from gptx.kv_cache.rows import Rows
from gptx.model import Model


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with gptx.load(threads=1, max_rows=4) as opened:
        yield opened


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Model]:
    """A model that never ends a text, with a chat template."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    folder = write_artifact(tmp_path / "a", n_ctx=2000, eos=[], template=template)
    with gptx.load(folder, threads=1, max_rows=2) as opened:
        yield opened


@needs_library
@pytest.mark.parametrize("n", [1, 33, 65])
def test_log_probabilities_of_a_prompt_beside_speculation(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of 65 tokens, or of 33 beside others, ends with a step of one token."""
    monkeypatch.setattr(speculation, "SHORTEST_STEP", -1.0)
    monkeypatch.setattr(speculation, "worth", lambda *given: (min(given[4], 4), 1.0))
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0, "prompt_logprobs": True}
    with native_operators(), gptx.load(threads=1, speculate=False) as plain:
        prompt = plain.encode("Once upon a time there was a king. " * 20)
        expected = plain.generate(prompt[:n], **options)
    with native_operators(), gptx.load(threads=1) as guessing:
        for others in (0, 3):
            beside = [
                guessing.submit(prompt, max_new_tokens=60, temperature=0) for _ in range(others)
            ]
            found = guessing.generate(prompt[:n], **options)
            for one in beside:
                one.cancel()
            assert found.token_ids == expected.token_ids
            assert found.prompt_logprobs == expected.prompt_logprobs
    assert len(expected.prompt_logprobs or ()) == n


def test_a_negative_prompt_may_be_an_iterator(model: Model) -> None:
    options: dict[str, Any] = {"guidance_scale": 3, "max_new_tokens": 8, "temperature": 0}
    expected = model.generate("Once upon a time", negative_prompt=[50, 60, 70], **options)
    again = model.generate("Once upon a time", negative_prompt=iter([50, 60, 70]), **options)  # type: ignore[arg-type]
    assert again.token_ids == expected.token_ids


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_errors_that_end_threads_end_their_text_alone(
    model: Model, error: type[BaseException]
) -> None:
    def ends(token: int, piece: str) -> None:
        raise error

    broken = model.submit("Once", max_new_tokens=20, on_token=ends)
    until(broken.has_ended)
    after = model.submit("Once", max_new_tokens=5, temperature=0)
    until(after.has_ended)
    assert len(after.result().token_ids) == 5
    with pytest.raises(error):
        broken.result()


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_an_error_that_would_end_a_loop_in_silence(model: Model, kind: type[Exception]) -> None:
    def ends(token: int, piece: str) -> None:
        raise kind

    with pytest.raises(RuntimeError, match=f"raised {kind.__name__}"):
        list(model.stream("Once", max_new_tokens=8, on_token=ends))
    with pytest.raises(RuntimeError, match=f"raised {kind.__name__}"):
        asyncio.run(model.generate_async("Once", max_new_tokens=8, on_token=ends))


@pytest.mark.parametrize("error", [ConnectionResetError, SystemExit])
def test_a_cancel_that_fails_ends_its_text_alone(model: Model, error: type[BaseException]) -> None:
    class Gone(threading.Event):
        def is_set(self) -> bool:
            raise error

    broken = model.submit("Once", max_new_tokens=50, cancel=Gone())
    assert within(lambda: model.generate("Once", max_new_tokens=5, temperature=0)).token_ids
    with pytest.raises(error):
        broken.result()


def test_an_interrupt_in_a_cancel_is_raised_in_the_main_thread_alone(endless: Model) -> None:
    class Interrupted(threading.Event):
        def is_set(self) -> bool:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return False

    other = endless.stream("x", max_new_tokens=50, cancel=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        endless.generate("y", max_new_tokens=50)
    with pytest.raises(UsageError, match="interrupted in the middle of a step"):
        list(other)
    assert len(endless.generate("y", max_new_tokens=50).token_ids) == 50


def test_an_interrupt_of_a_thread_that_waits_leaves_the_step_alone(
    endless: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of its request is in use: it is given back behind the step."""
    expected = endless.generate("x y z", max_new_tokens=9, temperature=0).token_ids
    inside, go, run = threading.Event(), threading.Event(), Rows.run

    def held(rows: Rows, feeds: Any) -> Any:
        found = run(rows, feeds)
        inside.set()
        assert go.wait(WAIT)
        return found

    def interrupted() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Rows, "run", held)
    stream = endless.submit("x y", max_new_tokens=50)
    assert inside.wait(WAIT)
    with pytest.raises(KeyboardInterrupt):
        endless.engine.wait(stream._request, interrupted)
    assert not stream.has_ended()
    go.set()
    until(stream.has_ended)
    endless.engine.forget()
    assert endless.generate("x y z", max_new_tokens=9, temperature=0).token_ids == expected


def test_an_interrupt_of_one_text_lets_the_others_go_on(endless: Model) -> None:
    def ends(token: int, piece: str) -> None:
        raise KeyboardInterrupt

    first = endless.stream("x", max_new_tokens=50, on_token=ends)
    second = endless.stream("y", max_new_tokens=50)
    with pytest.raises(KeyboardInterrupt):
        list(first)
    assert len(within(second.result).token_ids) == 50


def test_a_request_that_ends_just_before_its_thread_waits(endless: Model) -> None:
    """The thread that drives tells once that a request has ended, when nobody waits yet."""
    driver = endless.submit("x", max_new_tokens=1900)
    stream = endless.stream("y")

    def ends() -> bool:
        """Called between the look at the request and the wait."""
        endless.engine.end(stream._request)
        return False

    assert within(lambda: endless.engine.wait(stream._request, ends))
    driver.cancel()


def test_streams_that_nobody_holds_give_their_rows_back(endless: Model) -> None:
    for _ in range(1024):
        endless.stream("x")
    gc.collect()
    assert endless.stats().queue == 0
    for _ in range(20):
        for _ in endless.stream("x y z", max_new_tokens=200):
            break
    assert endless.stats().rows == 0
    assert len(endless.generate("x", max_new_tokens=3).token_ids) == 3


def test_a_submitted_text_that_nobody_holds_goes_on(endless: Model) -> None:
    told = []
    endless.submit("x", max_new_tokens=7, on_token=lambda *one: told.append(one))
    until(lambda: len(told) == 7)


def test_more_prompts_than_the_queue_holds(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", eos=[])
    with gptx.load(folder, threads=1, max_rows=1024) as model:
        assert len(model.generate(["a"] * 1200, max_new_tokens=1)) == 1200


def test_a_text_that_was_cancelled_in_a_step_says_closed(endless: Model) -> None:
    for _ in range(10):
        stream = endless.submit("x", max_new_tokens=1900)
        until(lambda: endless.stats().rows == 1)
        stream.cancel()
        until(stream.has_ended)
        assert stream.completion.finish_reason == "closed"


def test_a_chat_that_is_called_from_its_own_answer(endless: Model) -> None:
    chat = endless.chat()
    with pytest.raises(UsageError, match="this chat is answering"):
        chat.send("x", max_new_tokens=5, on_token=lambda *_: chat.send("y"))
    assert chat.messages == []
    assert len(chat.send("x", max_new_tokens=5).token_ids) == 5


def test_several_texts_where_there_is_room_for_one(endless: Model) -> None:
    chat, options = endless.chat(), {"num_return_sequences": 2, "temperature": 1.0}
    for call in (chat.send, chat.stream, endless.summarize, endless.stream, endless.submit):
        with pytest.raises(UsageError, match="num_return_sequences is 2, and this call gives one"):
            call("The king. " * 9, **options)  # type: ignore[operator]


@pytest.mark.parametrize("early", ["cancel", "max_time"])
def test_a_search_that_is_stopped_at_once_gives_all_its_texts(model: Model, early: str) -> None:
    cancelled = threading.Event()
    cancelled.set()
    stop: dict[str, Any] = {"cancel": cancelled} if early == "cancel" else {"max_time": 1e-9}
    found = model.generate(["a", "b"], num_beams=3, num_return_sequences=3, **stop)
    assert [one.token_ids for one in found] == [[]] * 6
    assert {one.finish_reason for one in found} == {"closed" if early == "cancel" else "time"}


def test_a_search_with_fewer_texts_than_asked_for(model: Model) -> None:
    def two(tokens: list[int], logits: np.ndarray) -> None:
        logits[:200] = logits[202:] = -np.inf

    found = model.generate(
        "a", num_beams=4, num_return_sequences=4, max_new_tokens=1, logits_processor=two
    )
    texts = [one.token_ids for one in found]  # type: ignore[attr-defined]
    assert sorted(texts[:2]) == [[200], [201]] and texts[1:] == [texts[1]] * 3


def test_max_time_of_any_kind_of_number(model: Model) -> None:
    found = model.generate("a", max_time=Decimal("60"), max_new_tokens=2)  # type: ignore[arg-type]
    assert found.finish_reason == "length"


def test_the_event_loop_goes_on_while_a_grammar_is_compiled(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance")
    threads = []
    compile_one = type(model._grammars)._compile

    def watched(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return compile_one(*arguments)

    monkeypatch.setattr(type(model._grammars), "_compile", watched)
    schema = {"enum": ["a", "b"]}
    asyncio.run(model.generate_async("x", json_schema=schema, max_new_tokens=3))
    assert threads[0] is not threading.main_thread()


@pytest.mark.parametrize("path", [".", "/", "..", "a\0b", "/tmp/\ud800", "n" * 300])
def test_paths_that_no_file_has(model: Model, path: str) -> None:
    with pytest.raises((UsageError, OutputError)):
        model.save_prefixes(path)


def test_sizes_that_no_float_holds(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a")
    with gptx.load(folder, threads=1, cache_memory="9" * 400) as model:
        assert model.generate("a", max_new_tokens=1).token_ids


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_logits_processor_must_not_give_infinity(model: Model, value: float, beams: int) -> None:
    def force(tokens: list[int], logits: np.ndarray) -> None:
        logits[7] = value

    with pytest.raises(UsageError, match="logits_processor gave NaN or infinity"):
        model.generate("a", logits_processor=force, num_beams=beams, max_new_tokens=2)


def test_a_guidance_scale_that_float32_does_not_hold(model: Model) -> None:
    with pytest.raises(UsageError, match="guidance_scale is 1e[+]?39, expected 0 to 1e30"):
        model.generate("a", guidance_scale=1e39)
    options: dict[str, Any] = {"max_new_tokens": 2, "temperature": 0}
    assert model.generate("a", guidance_scale=1e30, **options).token_ids


def test_forced_tokens_and_grammars_do_not_go_together(model: Model) -> None:
    pytest.importorskip("llguidance")
    for options in ({"forced_bos_token_id": 70}, {"forced_eos_token_id": 0}):
        with pytest.raises(UsageError, match="does not go with forced_"):
            model.generate("a", json_schema={"const": "b"}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "needed"), [("length_penalty", "num_beams"), ("dry_base", "dry_multiplier")]
)
def test_options_that_do_nothing_alone(model: Model, option: str, needed: str) -> None:
    with pytest.warns(GptxWarning, match=f"{option} has no effect without {needed}"):
        model.generate("a", max_new_tokens=1, **{option: 1.5})  # type: ignore[arg-type]


def test_the_last_seed(model: Model) -> None:
    texts = model.generate(
        "a", temperature=1.0, seed=2**128 - 1, num_return_sequences=2, max_new_tokens=2
    )
    assert [one.seed for one in texts] == [2**128 - 1, 0]  # type: ignore[attr-defined]
    with pytest.raises(GptxError, match="seed"):
        model.generate("a", temperature=1.0, seed=2**128)


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit])
def test_a_callbacks_error_is_not_raised_where_another_text_is_read(
    endless: Model, error: type[BaseException]
) -> None:
    def ends(token: int, piece: str) -> None:
        raise error

    broken = endless.stream("x", max_new_tokens=50, on_token=ends)
    assert len(endless.generate("y", max_new_tokens=50).token_ids) == 50
    assert broken.has_ended()
    with pytest.raises(error):
        list(broken)


def test_a_grammar_needs_no_thread_of_the_event_loop(model: Model) -> None:
    """asyncio's threads may all wait for this very call."""
    pytest.importorskip("llguidance")
    options: dict[str, Any] = {"json_schema": {"enum": ["c", "d"]}, "max_new_tokens": 3}

    async def calls() -> list[Any]:
        loop, done = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        blocked = loop.run_in_executor(None, done.wait, WAIT)
        try:
            async with asyncio.timeout(WAIT / 2):
                both = [model.generate_async(prompt, **options) for prompt in ("x", "y")]
                return [*await asyncio.gather(*both), await model.generate_async("z", **options)]
        finally:
            done.set()
            await blocked

    assert {json.loads(one.text) for one in asyncio.run(calls())} <= {"c", "d"}


def test_a_warning_of_a_grammar_names_the_place_of_the_call(model: Model) -> None:
    pytest.importorskip("llguidance")

    async def call() -> None:
        schema = {"type": "integer", "minimun": 41}
        await model.generate_async("x", json_schema=schema, max_new_tokens=3)

    with pytest.warns(GptxWarning, match="minimun in #") as caught:
        asyncio.run(call())
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore::gptx.GptxWarning")
def test_an_artifacts_forced_tokens_do_not_forbid_grammars(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    forced = {"forced_bos_token_id": 70, "forced_eos_token_id": 0}
    with gptx.load(write_artifact(tmp_path / "a", generation=forced), threads=1) as model:
        with pytest.warns(GptxWarning, match=r"forced_bos_token_id \(from the artifact's .*has no"):
            found = model.generate([5], json_schema={"const": "b"}, max_new_tokens=9)
        assert found.text == '"b"'
        with pytest.raises(UsageError, match="does not go with forced_eos_token_id"):
            model.generate([5], json_schema={"const": "b"}, forced_eos_token_id=0)


def test_a_text_whose_event_loop_was_closed(endless: Model) -> None:
    async def first(pieces: AsyncIterator[str]) -> None:
        await anext(pieces)

    pieces = endless.stream_async("x", max_new_tokens=1900)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(first(pieces))
    loop.close()
    until(lambda: endless.stats().rows == 0)
    assert endless.stats().new_tokens < 1900


@pytest.mark.parametrize("beams", [1, 2])
def test_a_damaged_model_is_not_blamed_on_a_logits_processor(tmp_path: Path, beams: int) -> None:
    folder = write_artifact(tmp_path / "a")
    change_embedding(folder, lambda table: table.fill(np.nan))
    model = gptx.load(folder, threads=1)
    with pytest.raises(ArtifactError, match="not finite numbers"):
        model.generate("a", logits_processor=lambda *_: None, num_beams=beams)


@pytest.mark.parametrize("beams", [1, 2])
def test_log_probabilities_of_a_text_without_tokens(model: Model, beams: int) -> None:
    cancelled = threading.Event()
    cancelled.set()
    found = model.generate("a", top_logprobs=2, num_beams=beams, cancel=cancelled)
    assert (found.logprobs, found.top_logprobs) == ([], [])
    found = model.generate("a", num_beams=beams, cancel=cancelled)
    assert (found.logprobs, found.top_logprobs) == (None, None)


def test_a_chat_that_nobody_holds_gives_its_row_back(endless: Model) -> None:
    chat = endless.chat()
    gone = weakref.ref(chat)
    gc.disable()
    try:
        next(chat.stream("x"))
        del chat
        assert gone() is None and endless.stats().rows == 0
    finally:
        gc.enable()


def test_a_stream_outlives_its_chat(endless: Model) -> None:
    assert len("".join(endless.chat().stream("x", max_new_tokens=20))) > 0


@pytest.mark.parametrize("call", ["reset", "close"])
def test_a_chat_cannot_start_over_while_it_answers(endless: Model, call: str) -> None:
    chat = endless.chat()
    with pytest.raises(UsageError, match="this chat is answering"):
        chat.send("x", max_new_tokens=5, on_token=lambda *_: getattr(chat, call)())
    assert len(chat.send("x", max_new_tokens=5).token_ids) == 5


@pytest.mark.parametrize("waits", [False, True])
def test_a_callback_closes_the_stream_that_another_thread_reads(
    endless: Model, waits: bool
) -> None:
    """That thread waits for the step in whose middle the callback is."""
    streams: list[Any] = []
    read = threading.Event()

    def closes(token: int, piece: str) -> None:
        if read.is_set():
            streams[0].close(wait=waits)

    streams.append(endless.stream("x", max_new_tokens=1900))
    reader = threading.Thread(target=lambda: (next(streams[0]), read.set(), [*streams[0]]))
    driver = endless.submit("y", max_new_tokens=1900, on_token=closes)
    reader.start()
    reader.join(WAIT)
    assert not reader.is_alive() and streams[0].completion.finish_reason == "closed"
    driver.cancel()


@pytest.mark.parametrize("how", ["send", "close"])
def test_an_open_answer_joins_the_conversation_beside_other_texts(endless: Model, how: str) -> None:
    """The step that runs when it is closed is another thread's."""
    other = endless.submit("x", max_new_tokens=1900)
    for _ in range(5):
        chat = endless.chat()
        stream = chat.stream("hello", max_new_tokens=300)
        text = next(stream) + next(stream)
        if how == "send":
            chat.send("again", max_new_tokens=3)
        else:
            stream.close()
        assert chat.messages[1] == {"role": "assistant", "content": text}
    assert not other.has_ended()
    other.cancel()


def test_an_interrupted_answer_is_no_part_of_the_chat(
    endless: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is free, although a REPL keeps the error, and so the stream."""
    chat, left, get = endless.chat(), iter(range(3)), Stream.__next__

    def interrupted(stream: Stream) -> str:
        piece = get(stream)
        if next(left, None) is None:
            raise KeyboardInterrupt
        return piece

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "__next__", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            chat.send("hello", max_new_tokens=300)
    assert kept.value and chat.messages == [] and endless.stats().rows == 0
    assert len(chat.send("hello", max_new_tokens=3).token_ids) == 3
    assert len(chat.messages) == 2


def test_a_signal_handler_that_interrupts_the_engine_is_refused(
    endless: Model, tmp_path: Path
) -> None:
    """This thread has the engine's lock then, so nobody could drive the steps."""
    with endless.engine._state.lock:
        for call in (
            lambda: endless.generate("x"),
            lambda: endless.save_prefixes(tmp_path / "x"),
            lambda: endless.load_prefixes(tmp_path / "x"),
        ):
            with pytest.raises(UsageError, match="computing a step of the same model already"):
                call()


def test_a_signal_handler_submits_while_the_engine_starts_its_thread(
    endless: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = endless.generate("y", max_new_tokens=50, temperature=0).token_ids
    begin, found, started = threading.Thread.__init__, list[Stream](), 0

    def begun(thread: threading.Thread, *arguments: Any, **options: Any) -> None:
        nonlocal started
        begin(thread, *arguments, **options)
        if options.get("name") == "gptx-engine":
            started += 1
            if started == 1:
                found.append(endless.submit("y", max_new_tokens=50, temperature=0))

    monkeypatch.setattr(threading.Thread, "__init__", begun)
    found.append(endless.submit("y", max_new_tokens=50, temperature=0))
    for one in found:
        until(one.has_ended)
        assert one.result().token_ids == expected


def test_a_prefix_that_cannot_be_stored(endless: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(prefix_cache.mmap, "mmap", none)
    beside = endless.submit("y", max_new_tokens=100)
    assert len(endless.generate("x y z", max_new_tokens=5).token_ids) == 5
    assert len(within(beside.result).token_ids) == 100
    assert endless.stats().prefix_bytes == 0


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_a_list_that_is_under_way_outlives_a_full_queue(endless: Model, in_a_loop: bool) -> None:
    endless.engine._requests.max_queue = 3
    prompts, options = ["x", "y z", "z"] * 7, {"max_new_tokens": 4, "temperature": 0}
    expected = [one.token_ids for one in endless.generate(prompts, **options)]
    flood = [endless.submit("x", max_new_tokens=60) for _ in range(2)]

    def floods(token: int, piece: str) -> None:
        for _ in range(3):
            with suppress(QueueFullError):
                flood.append(endless.submit("x", max_new_tokens=9))

    options["on_token"] = floods
    if in_a_loop:
        found = asyncio.run(endless.generate_async(prompts, **options))
    else:
        found = endless.generate(prompts, **options)
    assert [one.token_ids for one in found] == expected
    assert len(flood) > 5


def test_many_texts_are_classified_with_a_short_queue(endless: Model) -> None:
    texts, labels = ["x y", "y z z", "z"] * 5, ["good", "bad", "so so"]
    expected = endless.classify(texts, labels=labels)
    endless.engine._requests.max_queue = 3
    assert endless.classify(texts, labels=labels) == expected


def test_a_full_queue_has_an_error_of_its_own(endless: Model) -> None:
    growing = [endless.submit("x", max_new_tokens=1900) for _ in range(2)]
    until(lambda: endless.stats().rows == 2)
    growing.append(endless.submit("x"))
    endless.engine._requests.max_queue = 1
    for call in (lambda: endless.generate(["x", "y"]), lambda: endless.score("x y")):
        with pytest.raises(QueueFullError, match="the queue is full: 1 requests wait"):
            call()
    for one in growing:
        one.cancel()


def test_a_message_that_is_refused_by_a_full_queue_is_no_part_of_the_chat(endless: Model) -> None:
    growing = [endless.submit("x", max_new_tokens=1900) for _ in range(2)]
    until(lambda: endless.stats().rows == 2)
    endless.engine._requests.max_queue = 0
    chat = endless.chat(system="s")
    for call in (chat.send, chat.stream):
        with pytest.raises(QueueFullError):
            call("hello")
        gc.collect()
        assert [one["role"] for one in chat.messages] == ["system"]
    for one in growing:
        one.cancel()


def test_a_half_read_answer_that_nobody_holds(endless: Model) -> None:
    chat, text = endless.chat(), ""
    for piece in chat.stream("x", overflow="slide"):
        text = piece
        break
    assert endless.stats().rows == 0
    assert [one["content"] for one in chat.messages] == ["x", text]


def test_a_system_message_that_is_too_long(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", n_ctx=16, template="{{ messages[0].content }}")
    chat = gptx.load(folder, threads=1).chat(system="x y z " * 9)
    with pytest.raises(PromptError, match="the system message has .* make it shorter"):
        chat.send("x", overflow="slide")


def test_the_result_of_a_failed_text_can_be_asked_for_twice(model: Model) -> None:
    failed = model.submit("a", logits_processor=lambda *_: 5)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(UsageError, match="logits_processor returned 5"):
            failed.result()


def test_the_wrong_one_of_several_prompts_is_named(model: Model) -> None:
    for prompts in (["a", ""], [[5], [10**6]]):
        with pytest.raises(PromptError, match="prompt 2 of 2: "):
            model.generate(prompts)


def test_ctrl_c_while_llguidance_calls_python(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance")

    class Interrupted:
        def is_error(self) -> bool:
            return True

        def get_error(self) -> str:
            return "panic: called Result::unwrap() on PyErr { type: <class 'KeyboardInterrupt'> }"

    stream = model.stream("x", json_schema={"type": "integer"})
    monkeypatch.setattr(stream._work._matcher, "_library", Interrupted())  # type: ignore[union-attr]
    with pytest.raises(KeyboardInterrupt):
        stream._work._matcher._check()  # type: ignore[union-attr]
    stream.close()
    assert model.generate("x", json_schema={"type": "integer"}, max_new_tokens=3).text


def test_a_refused_message_leaves_the_turn_of_another_thread(
    endless: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other turn begins after the message was sent, and before it is refused."""
    chat, opened, done = endless.chat(), list[Stream](), threading.Event()
    resolve = endless.resolve_options

    def other_turn() -> None:
        opened.append(chat.stream("first", max_new_tokens=20))
        next(opened[0])
        done.wait(WAIT)

    other = threading.Thread(target=other_turn)

    def resolving(*arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            other.start()
            until(lambda: bool(opened) and opened[0]._read > 0)
        return resolve(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(endless, "resolve_options", resolving)
        with pytest.raises(UsageError, match="answering in another thread"):
            chat.send("second")
    done.set()
    other.join(WAIT)
    assert len(opened[0].result().token_ids) == 20
    assert [one["content"] for one in chat.messages][0] == "first"


def test_a_chat_whose_answer_another_thread_waits_for(endless: Model) -> None:
    chat, found = endless.chat(), list[Any]()
    stream = chat.stream("first", max_new_tokens=1900)
    other = threading.Thread(target=lambda: found.append(stream.result()))
    other.start()
    until(lambda: stream._reading)
    with pytest.raises(UsageError, match="answering in another thread"):
        chat.send("second", max_new_tokens=3)
    other.join(WAIT)
    assert found[0].finish_reason == "length" and len(chat.messages) == 2


def test_a_list_is_not_held_up_by_streams_that_nobody_reads(endless: Model) -> None:
    endless.engine._requests.max_queue = 1
    paused = list[Stream]()

    def opens(token: int, piece: str) -> None:
        with suppress(QueueFullError):
            paused.append(endless.stream("x", max_new_tokens=1900))

    options: dict[str, Any] = {"max_new_tokens": 2, "on_token": opens}
    found = within(lambda: endless.generate(["x", "y", "z"] * 4, **options))
    assert [len(one.token_ids) for one in found] == [2] * 12 and paused


def test_a_stream_that_is_being_closed_gives_no_more_pieces(
    endless: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = endless.chat()
    stream, inside, go = chat.stream("x", max_new_tokens=50), threading.Event(), threading.Event()
    next(stream)
    monkeypatch.setattr(stream, "_on_end", lambda _: (inside.set(), go.wait(WAIT)))
    closing = threading.Thread(target=stream.close)
    closing.start()
    assert inside.wait(WAIT) and list(stream) == []
    go.set()
    closing.join(WAIT)


@needs_library
def test_a_grammar_that_reaches_a_limit_ends_its_text_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guesses ask the grammar for forced tokens before a step that other texts share."""
    pytest.importorskip("llguidance")

    def limit(matcher: Any) -> list[int]:
        raise UsageError("too many items")

    monkeypatch.setattr(speculation, "SHORTEST_STEP", -1.0)
    with native_operators(), gptx.load(threads=1) as model:
        expected = model.generate("Once", max_new_tokens=20, temperature=0).token_ids
        monkeypatch.setattr("gptx.engine.matcher.Matcher.forced", limit)
        beside = model.stream("x", json_schema={"type": "string"}, max_new_tokens=20)
        assert model.generate("Once", max_new_tokens=20, temperature=0).token_ids == expected
        beside.close()
