"""Streams and chats whose step fails or is interrupted: no effect, or a clear error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import gptx
from builders.tiny_artifact import write_artifact
from gptx.errors import ArtifactError, GptxError, PromptError, UsageError
from gptx.generation.transcript import Transcript
from gptx.model import Model
from gptx.ort.binding import Binding

TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('never no') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("half") / "a"
    with gptx.load(write_artifact(folder, n_ctx=300, template=TEMPLATE, eos=[]), threads=1) as one:
        yield one


def fail_at(
    monkeypatch: pytest.MonkeyPatch, holder: type, method: str, call: int, error: BaseException
) -> None:
    """Make one call of a method, number `call`, raise `error`."""
    run, left = getattr(holder, method), iter(range(call + 1))

    def failing(self: Any, *args: Any, **options: Any) -> Any:
        if next(left, None) == call:
            raise error
        return run(self, *args, **options)

    monkeypatch.setattr(holder, method, failing)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ArtifactError("it failed")])
@pytest.mark.parametrize("holder", [Binding, Transcript])
def test_a_stream_whose_step_failed_refuses_to_go_on(
    model: Model, holder: type, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a token would be fed twice, or be missing in the text."""
    expected = model.generate("the cat", max_new_tokens=9)
    fail_at(monkeypatch, holder, "run" if holder is Binding else "push", 4, error)
    stream = model.stream("the cat", max_new_tokens=9)
    with pytest.raises(type(error)):
        list(stream)
    for _ in range(2):
        with pytest.raises(UsageError, match="this stream failed or was interrupted"):
            next(stream)
    found = stream.completion
    assert found.finish_reason is None
    assert found.token_ids == expected.token_ids[:4]
    assert expected.text is not None and expected.text.startswith(found.text or "")
    stream.close()
    assert stream.completion.finish_reason == "closed"
    assert list(stream) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ArtifactError("it failed")])
@pytest.mark.parametrize("call", [0, 3])
def test_a_message_that_failed_is_no_part_of_the_chat(
    model: Model, call: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the message nor the beginning of an answer that its caller never got."""
    chat = model.chat(system="short")
    chat.send("hello", max_new_tokens=3)
    before = list(chat.messages)
    with monkeypatch.context() as patch:
        fail_at(patch, Binding, "run", call, error)
        with pytest.raises(type(error)):
            chat.send("again", max_new_tokens=8)
    assert chat.messages == before
    answer = chat.send("again", max_new_tokens=8)
    prompt = model.chat_ids([*before, {"role": "user", "content": "again"}])
    assert answer.token_ids == model.generate(prompt, max_new_tokens=8).token_ids
    assert len(chat.messages) == 5


@pytest.mark.parametrize("message", ["no", "a\ud800b", "word " * 300])
def test_a_message_that_cannot_be_sent_leaves_the_open_answer_alone(
    model: Model, message: str
) -> None:
    """The open answer can still be read to its end."""
    chat = model.chat()
    stream = chat.stream("hello", max_new_tokens=12)
    pieces = [next(stream)]
    for call in (chat.stream, chat.send):
        with pytest.raises(GptxError):
            call(message)
    pieces += stream
    assert stream.completion.finish_reason == "length"
    assert chat.messages[-1]["content"] == "".join(pieces)


def test_a_message_over_max_length_leaves_the_cache_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("half") / "a"
    write_artifact(folder, n_ctx=300, template=TEMPLATE, eos=[], generation={"max_length": 60})
    with gptx.load(folder, threads=1) as model, model.chat() as chat:
        chat.send("hello", max_new_tokens=3)
        held = chat.tokens
        chat.messages[0] = {"role": "user", "content": "another"}
        with pytest.raises(PromptError, match="max_length 60"):
            chat.send("word " * 30)
        assert chat.tokens == held


def test_ctrl_c_while_an_answer_joins_the_conversation(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer must not be lost, and the chat must not stay open."""
    chat = model.chat()
    with monkeypatch.context() as patch:
        fail_at(patch, Transcript, "completion", 0, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            list(chat.stream("hello", max_new_tokens=3))
    chat.send("again", max_new_tokens=3)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_a_reader_is_a_thread_and_not_its_number(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new thread may get the number (ident) of one that has ended."""
    chat, go_on = model.chat(), threading.Event()
    first = threading.Thread(target=lambda: next(chat.stream("hello", max_new_tokens=5)))
    first.start()
    first.join()
    second = threading.Thread(target=go_on.wait)
    second.start()
    try:
        monkeypatch.setattr(second, "_ident", first.ident)
        chat.send("again", max_new_tokens=3)
    finally:
        go_on.set()
        second.join()


def test_two_threads_close_a_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Both calls of close return without an error."""
    model = gptx.load(write_artifact(tmp_path_factory.mktemp("half") / "a"), threads=1)
    graph = model._graph
    assert graph is not None

    class Slow:
        def close(self) -> None:
            model.close()  # as another thread does meanwhile
            graph.close()

    model._graph = Slow()  # type: ignore[assignment]
    model.close()
    with pytest.raises(UsageError, match="this model is closed"):
        model.generate("the cat")
