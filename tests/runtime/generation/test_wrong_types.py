"""Values of wrong types in every public method give a result or a GptxError, no other exception."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import gptx
from builders.tiny_artifact import write_artifact
from gptx.errors import ArtifactError, GptxError, PromptError, UsageError
from gptx.model import Model

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
chat: Any = gptx.Chat
load: Any = gptx.load  # Any, so that type checkers allow wrong arguments
HALF = "a\ud800b"  # half of a surrogate pair


class Index:
    """An integer only by its __index__."""

    def __index__(self) -> int:
        return 3


VALUES: list[Any] = [
    None, 5, -1, 2.5, float("nan"), float("inf"), 10**400, True, b"x", bytearray(b"x"), "", "\0",
    HALF, [], (), {}, {"a": 1}, set(), {"a"}, {1}, object(), int, len, range(3), np.array(5),
    np.array([1, 2]), np.array([1.5]), np.array(["a", "b"]), np.zeros((2, 2), int), [None], [[]],
    [["a"]], ["a", 5], [1, "a"], [HALF, "b"], [[1], "a"], [[1], [None]], [{"role": 5}], [{5: 5}],
    [("a",)], [("a", 5)], [b"a", b"b"], range(10**12), range(10**30), deque([1, 2]),
    deque(["a", "b"]), deque([("a", "b")]), Index(), [Index()], memoryview(b"ab"),
    torch.tensor([[5]]), torch.tensor([1.5]), Decimal("NaN"), Decimal("sNaN"), Fraction(1, 2), 1j,
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("types") / "a"
    generation = {"max_new_tokens": 2}
    with gptx.load(
        write_artifact(folder, n_ctx=64, template=TEMPLATE, generation=generation), threads=1
    ) as opened:
        yield opened


def methods(kind: type) -> list[str]:
    return [
        name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")
    ]


# Right arguments of each public method. A test replaces one of them by a wrong value.
GOOD: dict[str, dict[str, Any]] = {
    "Model.generate": {"prompt": "the cat"},
    "Model.stream": {"prompt": "the cat"},
    "Model.submit": {"prompt": "the cat"},
    "Model.generate_async": {"prompt": "the cat"},
    "Model.stream_async": {"prompt": "the cat"},
    "Model.chat": {},
    "Model.score": {"text": "the cat sat"},
    "Model.classify": {"text": "the cat", "labels": ["a", "b"]},
    "Model.summarize": {"text": "the cat"},
    "Model.session": {},
    "Model.load_prefixes": {"path": "no-such-file"},
    "Model.encode": {"prompt": "the cat"},
    "Model.chat_ids": {"messages": [{"role": "user", "content": "hi"}]},
    "Chat.stream": {"message": "hi"},
    "Chat.send": {"message": "hi"},
    "Session.feed": {"rows": [[1]]},
    "Session.advance": {"rows": [[1]]},
    "Session.rewind": {"lengths": [0]},
    "Session.begin_at": {},
    "Stream.close": {},
    "Stream.result": {},
}
# Methods without arguments, or whose arguments only gptx itself passes
NO_ARGUMENTS = {
    "Model.close", "Model.save_prefixes", "Model.need_chat", "Model.stream_ids", "Model.stats",
    "Model.resolve_options",
    "Chat.reset", "Chat.close", "Session.close", "Stream.is_read_elsewhere",
    "Stream.cancel", "Stream.has_ended", "Stream.has_news", "Stream.results",
}  # fmt: skip


def test_every_public_method_is_named_here() -> None:
    kinds = [getattr(gptx, name) for name in gptx.__all__ if name[0].isupper()]
    found = {f"{kind.__name__}.{name}" for kind in kinds for name in methods(kind)}
    assert found == GOOD.keys() | NO_ARGUMENTS


def bound(model: Model, name: str) -> Callable[..., Any]:
    kind, method = name.split(".")
    holders: dict[str, Callable[[], Any]] = {
        "Model": lambda: model,
        "Chat": model.chat,
        "Session": model.session,
        "Stream": lambda: model.stream("the cat"),
    }
    holder = holders[kind]()
    return getattr(holder, method)


def arguments(name: str) -> list[str]:
    kind, method = name.split(".")
    names = [
        one
        for one in inspect.signature(getattr(getattr(gptx, kind), method)).parameters
        if one != "self"
    ]
    if "options" in names:
        names += list(gptx.generation.option_keywords.Keywords.__annotations__)  # type: ignore[attr-defined]
    return [one for one in names if one != "options"]


def finish(result: Any) -> None:
    """Read a stream to its end, and await what must be awaited."""
    if isinstance(result, gptx.Stream):
        result.result()
    elif inspect.isasyncgen(result):
        asyncio.run(anext(result, None))  # type: ignore[arg-type]
    elif inspect.iscoroutine(result):
        asyncio.run(result)


@pytest.mark.filterwarnings("ignore::gptx.GptxWarning")
@pytest.mark.parametrize("name", GOOD)
def test_wrong_types(model: Model, name: str) -> None:
    failed = []
    for argument in arguments(name):
        for value in VALUES:
            if argument in ("logits_processor", "on_token") and callable(value):
                continue  # the errors of an app's own function are its own
            try:
                finish(bound(model, name)(**{**GOOD[name], argument: value}))
            except (UsageError, PromptError, ArtifactError) as error:
                assert "\n" not in str(error) and len(str(error)) < 400
            except Exception as error:
                failed.append(f"{argument}={value!r:.40}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("argument", ["path", "device", "threads", "adjust_memory"])
def test_load(model: Model, argument: str) -> None:
    good: dict[str, Any] = {"path": model.path, "threads": 1}
    for value in VALUES:
        try:
            gptx.load(**{**good, argument: value})
        except GptxError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("argument", ["kind", "template", "labels", "head"])
def test_task(argument: str) -> None:
    for value in VALUES:
        try:
            gptx.Task(**{"kind": "classify", argument: value})
        except UsageError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: load(5), "path is 5, expected the folder of an artifact"),
        (lambda m: load(b"x"), "path is b'x', expected"),
        (lambda m: load(m.path, threads="a"), "threads is 'a', expected 1 to"),
        (lambda m: m.generate({"a"}), "a prompt is a text or a list of token ids, not set"),
        (lambda m: m.generate(None), "a prompt is a text or a list of token ids, not NoneType"),
        (lambda m: m.generate([]), "the prompt is empty"),
        (lambda m: m.generate([[]]), "the prompt is empty"),
        (lambda m: m.generate([["a"]]), "and this one holds 'a'"),
        (lambda m: m.generate([True]), "and this one holds True"),
        (lambda m: m.classify(5, ["a", "b"]), "the text is 5, expected a text or a list of texts"),
        (lambda m: m.classify(["a", 5], ["a", "b"]), "text 2 of 2 is 5"),
        (lambda m: m.classify("a", "bc"), "labels are 'bc', expected a list of texts"),
        (lambda m: m.classify("a", {"b", "c"}), "labels are {"),
        (
            lambda m: m.classify("a", ["b", None]),
            r"labels are \['b', None\], expected a list of texts",
        ),
        (
            lambda m: m.classify("a", ["b", "c"], examples=5),
            "examples are 5, expected a list of pairs",
        ),
        (
            lambda m: m.classify("a", ["b", "c"], examples=[5]),
            "example 1 is 5, expected a text and its answer",
        ),
        (
            lambda m: m.classify("a", ["b", "c"], template=5),
            "the template is 5, expected a text with",
        ),
        (
            lambda m: m.classify("a", ["b", "c"], calibrate="x"),
            "calibrate is 'x', expected True or False",
        ),
        (lambda m: m.summarize(3), "the text is 3: give a text to summarize"),
        (lambda m: m.summarize("a", template=""), r"holds \{text\} nowhere"),
        (lambda m: m.score(["a"]), "and this one holds 'a'"),
        (lambda m: m.score(3.5), "a prompt is a text or a list of token ids, not float"),
        (lambda m: m.score("a", overlap="x"), "overlap is 'x', expected 1 to 64"),
        (lambda m: m.session("a"), "batch_size is 'a', expected at least 1"),
        (
            lambda m: m.session().rewind(0),
            "rewind got 0, expected a list with an entry for each of the 1 rows",
        ),
        (lambda m: m.chat(system=5), "system is 5, expected a text"),
        (lambda m: m.chat().send(None), "the message is None, expected a text"),
        (lambda m: m.chat().stream(5), "the message is 5, expected a text"),
        (lambda m: m.chat_ids(None), "the messages are None, expected a list of messages such as"),
        (lambda m: m.chat_ids(["hi"]), "message 1 is 'hi', expected"),
        (
            lambda m: m.chat_ids([{"role": 5, "content": "hi"}]),
            "the role of message 1 is 5, expected",
        ),
        (
            lambda m: m.chat_ids([{"role": "user"}]),
            "the content of message 1 is None, expected a text",
        ),
        (
            lambda m: m.template.render([{"role": "user", "content": 5}]),
            "the content of message 1 is 5, expected a text",
        ),
        (lambda m: m.encode(5), "a prompt is a text or a list of token ids, not int"),
        (lambda m: m.encode(itertools.count()), "token id 277 is outside the model's vocabulary"),
        (
            lambda m: m.generate("a", stop_tokens=b"ab"),
            "stop_tokens is b'ab', expected a list",
        ),
        (lambda m: m.generate("a", stop=b""), "stop is b'', expected texts that are not empty"),
        (lambda m: m.stream("a").close(wait="x"), "wait is 'x', expected True or False"),
        (lambda m: m.session().begin_at(64), "position is 64, expected 0 to 63"),
        (lambda m: m.tokenizer.decode(["a"]), r"\['a'\] cannot be decoded"),
        (lambda m: m.tokenizer.decode([-1]), r"\[-1\] cannot be decoded"),
        (lambda m: chat(5), "model is 5, expected what gptx.load returns"),
        (
            lambda m: gptx.Session(m),
            "graph is <gptx.model.Model object .*: Model.session opens a session",
        ),
    ],
)
def test_what_the_sentence_says(model: Model, call: Callable[[Model], Any], says: str) -> None:
    with pytest.raises((UsageError, PromptError), match=says):
        call(model)


def test_a_refused_message_leaves_the_open_answer_alone(model: Model) -> None:
    chat = model.chat()
    answer = chat.stream("hi")
    wrong: list[dict[str, Any]] = [
        {"message": None},
        {"message": "a", "temperature": "hot"},
        {"message": b"a"},
        {"message": "a", "stop_tokens": [10**6]},
    ]
    for arguments in wrong:
        with pytest.raises((UsageError, PromptError)):
            chat.send(**arguments)
    assert answer.completion.finish_reason is None
    for _ in answer:
        pass
    assert answer.completion.finish_reason in ("length", "stop")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


def test_prompts_of_other_sequences(model: Model) -> None:
    """Arrays, ranges and generators of token ids are prompts, like lists."""
    expected = model.generate([3, 4, 5]).token_ids
    others: list[Any] = [
        (3, 4, 5),
        range(3, 6),
        np.array([3, 4, 5]),
        iter([3, 4, 5]),
        [np.int64(3), 4, 5],
    ]
    assert [model.generate(prompt).token_ids for prompt in others] == [expected] * len(others)
    tensor: Any = torch.tensor([[5]])  # a list of one prompt, though it may be an index
    assert [one.token_ids for one in model.generate(tensor)] == [model.generate([5]).token_ids]
    batch: Any = np.array([[3, 4, 5]] * 2)
    assert [one.token_ids for one in model.generate(batch)] == [expected] * 2
