"""Two threads in one chat or stream: the second one gets an error, and no text is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

import gptx
from builders.tiny_artifact import write_artifact
from gptx.errors import UsageError
from gptx.model import Model
from gptx.ort.binding import Binding

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = write_artifact(
        tmp_path_factory.mktemp("threads") / "a", n_ctx=300, template=TEMPLATE, eos=[]
    )
    with gptx.load(folder, threads=1) as opened:
        yield opened


class Paused:
    """From the third run on, runs of the model in other threads wait here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running, self.go_on = threading.Event(), threading.Event()
        run, mine, left = Binding.run, threading.get_ident(), iter(range(2))

        def paused(binding: Binding, options: object = None) -> None:
            if threading.get_ident() != mine and next(left, None) is None:
                self.running.set()
                assert self.go_on.wait(30)
            run(binding, options)

        monkeypatch.setattr(Binding, "run", paused)

    def during(self, work: Callable[[], object], do: Callable[[], object]) -> None:
        """Call `do` while another thread is in a step of `work`."""
        failed: list[BaseException] = []

        def worker() -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=worker)
        thread.start()
        assert self.running.wait(30)
        try:
            do()
        finally:
            self.go_on.set()
            thread.join(30)
        assert not failed, failed


def test_two_threads_ask_one_chat(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of them may get an empty answer without an error."""
    chat, answers = model.chat(), []

    def meanwhile() -> None:
        calls = (lambda: chat.send("me too"), lambda: chat.stream("me too"), chat.reset, chat.close)
        for call in calls:
            with pytest.raises(UsageError, match="this chat is answering in another thread"):
                call()

    work = lambda: answers.append(chat.send("hello", max_new_tokens=12))  # noqa: E731
    Paused(monkeypatch).during(work, meanwhile)
    assert (
        answers[0].token_ids
        == model.generate(
            model.chat_ids([{"role": "user", "content": "hello"}]), max_new_tokens=12
        ).token_ids
    )
    assert answers[0].finish_reason == "length"
    assert len(chat.messages) == 2
    chat.send("and I", max_new_tokens=3)  # the other answer has ended
    assert len(chat.messages) == 4


def test_an_answer_that_a_dead_thread_left_is_settled(model: Model) -> None:
    chat = model.chat()
    thread = threading.Thread(target=lambda: next(chat.stream("hello")))
    thread.start()
    thread.join()
    chat.send("and I", max_new_tokens=3)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_a_stop_button(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """`close` from another thread ends the stream without an error in the thread that reads."""
    stream, pieces = model.stream("the cat", max_new_tokens=50), []
    Paused(monkeypatch).during(lambda: pieces.extend(stream), stream.close)
    assert stream.completion.finish_reason == "closed"
    assert len(stream.completion.token_ids) == 3  # the last one is from the step that ran
    assert "".join(pieces) == stream.completion.text


def test_a_stop_button_of_a_chat(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = model.chat()
    stream = chat.stream("hello", max_new_tokens=50)
    Paused(monkeypatch).during(lambda: list(stream), stream.close)
    assert stream.completion.finish_reason == "closed"
    assert chat.messages[-1] == {"role": "assistant", "content": stream.completion.text}
    chat.send("again", max_new_tokens=3)
    assert len(chat.messages) == 4


def test_a_chat_waits_for_an_answer_that_was_closed(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, paused = model.chat(), Paused(monkeypatch)
    stream = chat.stream("hello", max_new_tokens=50)

    def stop_and_ask() -> None:
        stream.close()
        threading.Timer(0.1, paused.go_on.set).start()
        chat.send("again", max_new_tokens=3)

    paused.during(lambda: list(stream), stop_and_ask)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_two_threads_read_one_stream(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.generate("the cat", max_new_tokens=20)
    stream = model.stream("the cat", max_new_tokens=20)

    def meanwhile() -> None:
        with pytest.raises(UsageError, match="another thread is reading this stream"):
            next(stream)

    Paused(monkeypatch).during(lambda: list(stream), meanwhile)
    assert stream.completion.token_ids == expected.token_ids
    assert stream.completion.text == expected.text


def test_a_signal_closes_the_stream_that_it_interrupts(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler runs in the middle of the main thread's own step."""
    stream, run, calls = model.stream("the cat", max_new_tokens=20), Binding.run, iter(range(2))

    def interrupted(binding: Binding, options: object = None) -> None:
        if next(calls, None) is None:
            stream.close()
        run(binding, options)

    monkeypatch.setattr(Binding, "run", interrupted)
    text = "".join(stream)
    assert stream.completion.finish_reason == "closed"
    assert len(stream.completion.token_ids) == 3
    assert stream.completion.text == text


def test_many_threads_in_one_model(model: Model) -> None:
    prompts = ["the cat", "a dog sat", "the log on the mat", "and"]
    expected = [model.generate(prompt, max_new_tokens=10).token_ids for prompt in prompts]
    found: dict[int, list[int]] = {}

    def ask(at: int) -> None:
        found[at] = model.generate(prompts[at], max_new_tokens=10).token_ids

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(len(prompts))] == expected
