"""A session that refuses a call, or whose run fails, goes on as if there had been no such call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builders.ctrl_c import interrupted
from builders.pretend_cuda import pretend_cuda
from builders.tiny_artifact import write_artifact
from gptx.artifact.manifest import read_manifest
from gptx.errors import ArtifactError, GptxError, PromptError, UsageError
from gptx.generation.session import Session
from gptx.kv_cache.concat import ConcatCache
from gptx.kv_cache.memory_limit import check_memory
from gptx.kv_cache.shared_buffer import Buffer
from gptx.ort.binding import Binding
from gptx.ort.graph import OnnxGraph, open_graph

FORMS = ("shared", "growing", "scatter", "scatter on CUDA")
IDS = [int(i) for i in np.random.default_rng(7).integers(0, 250, 60)]
NAN = float("nan")
TRACED = {"session.py", "shared_buffer.py", "concat.py", "cuda.py"}


@pytest.fixture(scope="module", params=FORMS)
def graph(request: pytest.FixtureRequest, artifacts: dict[str, Path]) -> Iterator[OnnxGraph]:
    form, _, cuda = request.param.partition(" on ")
    if not cuda:
        yield open_graph(read_manifest(artifacts[form]), threads=1)
        return
    with pretend_cuda():
        yield open_graph(read_manifest(artifacts[form]), device="cuda", threads=1)


# Calls that are refused. Two rows each.
BAD_FEEDS: list[Any] = [
    None, 5, 2.5, True, "ab", b"ab", {}, {0: [1], 1: [2]}, {1, 2}, object(), np.array(5),
    np.array([1, 2]), np.zeros((2, 2)), np.ones((2, 2), bool), np.zeros((2, 1, 1), int), [],
    [[], []], [[1]], [[1], [2], [3]], [1, 2], [[1], 2], [[1], None], [[1], "a"], [[1], b"a"],
    [[1], {2}], [[1], {2: 3}], [[1, 2], [None]], [[1, 2], [2.0]], [[1], [True]], [[1], [[2]]],
    [[1], [-1]], [[1, 2], [3, 280]], [[1, 2], [2**31]], [[1, 2], [2**64, 1]], [[1], [10**30]],
    [[1, 2], [NAN]], [[1], [0] * 65], [[1, 2, 3], [4] * 100], [[1], np.array([1.0])],
    [np.array([1]), np.array([280])], [[1], range(10**12)],
]  # fmt: skip
BAD_LENGTHS: list[Any] = [
    None, 0, 5, 2.5, True, "ab", b"ab", {}, {0: 1, 1: 1}, {0, 1}, object(), np.array(0), [], [0],
    [0, 0, 0], [0, -1], [0, 65], [0, 1.0], [0, None], [0, "0"], [0, [0]], [0, NAN], [0, True],
    [0, 10**30], np.zeros(2),
]  # fmt: skip
SHORT = st.lists(st.integers(0, 249), max_size=6)
CALLS = st.one_of(
    st.tuples(st.just("feed"), st.tuples(SHORT, SHORT).filter(any)),
    st.tuples(
        st.just("feed"), st.tuples(st.lists(st.integers(0, 249), min_size=1, max_size=1), SHORT)
    ),
    st.tuples(st.just("feed all"), st.tuples(SHORT, SHORT).filter(any)),
    st.tuples(st.just("rewind"), st.tuples(st.integers(0, 4), st.integers(0, 4))),
    st.tuples(st.just("bad feed"), st.sampled_from(BAD_FEEDS)),
    st.tuples(st.just("bad feed all"), st.sampled_from(BAD_FEEDS)),
    st.tuples(st.just("bad advance"), st.sampled_from(BAD_FEEDS)),
    st.tuples(st.just("bad rewind"), st.sampled_from(BAD_LENGTHS)),
)


def good_call(session: Session, kind: str, argument: Any) -> list[np.ndarray]:
    if kind == "rewind":  # `argument`: how many tokens go
        session.rewind([max(0, held - gone) for held, gone in zip(session.lengths, argument)])
        return []
    if any(held + len(new) > session.limit for held, new in zip(session.lengths, argument)):
        return []
    return list(
        session.feed(list(argument), all_logits=True)
        if kind == "feed all"
        else session.feed(list(argument))
    )


def refused(session: Session, kind: str, argument: Any) -> None:
    with pytest.raises((UsageError, PromptError)):
        if kind == "bad rewind":
            session.rewind(argument)
        elif kind == "bad advance":
            session.advance(argument)
        else:
            _ = (
                session.feed(argument, all_logits=True)
                if kind == "bad feed all"
                else session.feed(argument)
            )


@settings(max_examples=40)
@example(
    calls=[
        ("feed", ([1, 2, 3], [4, 5])),
        ("feed", ([6], [7])),
        ("bad rewind", [1.0, 1]),
        ("feed", ([8], [9])),
    ]
)
@given(calls=st.lists(CALLS, max_size=12))
def test_a_refused_call_changes_nothing(graph: OnnxGraph, calls: list[tuple[str, Any]]) -> None:
    seen, spared = Session(graph, 2), Session(graph, 2)
    for kind, argument in calls:
        if kind.startswith("bad"):
            refused(seen, kind, argument)
            continue
        for ours, expected in zip(
            good_call(seen, kind, argument), good_call(spared, kind, argument), strict=True
        ):
            np.testing.assert_array_equal(ours, expected)
    assert seen.tokens == spared.tokens
    assert seen.lengths == spared.lengths


@pytest.mark.parametrize("kind", ["bad feed", "bad feed all", "bad advance", "bad rewind"])
def test_every_refusal_is_a_sentence(graph: OnnxGraph, kind: str) -> None:
    """Sessions of one row are tested, too, because their decode steps take a fast path."""
    session, lone = Session(graph, 2), Session(graph)
    session.feed([IDS[:5], IDS[:3]])
    lone.feed([IDS[:5]])
    for argument in BAD_LENGTHS if kind == "bad rewind" else BAD_FEEDS:
        refused(session, kind, argument)
    lone_arguments: list[Any] = [
        None,
        5,
        "a",
        b"a",
        [None],
        [5.0],
        [[5.0]],
        [[True]],
        ["a"],
        [b"a"],
        [{5}],
        [[280]],
        [[-1]],
    ]
    for argument in [*lone_arguments, np.array(5), np.array([5.0]), [5, 5]]:
        refused(lone, kind, argument)
    assert (session.lengths, lone.lengths) == ([5, 3], [5])


def test_rewinding_to_a_float(graph: OnnxGraph) -> None:
    """It must be refused before the mask is changed."""
    session, spared = Session(graph), Session(graph)
    for token in IDS[:6]:
        session.feed([[token]])
        spared.feed([[token]])
    with pytest.raises(UsageError, match=r"row 0 holds 6 tokens and cannot be rewound to 3\.0"):
        session.rewind([3.0])  # type: ignore[list-item]
    np.testing.assert_array_equal(session.feed([[9]]), spared.feed([[9]]))


@pytest.mark.parametrize("length", [np.int64(3), np.int32(3), np.uint8(3)])
def test_integers_of_numpy(graph: OnnxGraph, length: Any) -> None:
    session, plain = Session(graph), Session(graph)
    whole: Any = [np.array(IDS[:6])]
    one: Any = [[np.int32(IDS[3])]]
    lengths: Any = np.array([length])
    np.testing.assert_array_equal(session.feed(whole), plain.feed([IDS[:6]]))
    session.rewind(lengths)
    plain.rewind([3])
    assert [type(n) for n in session.lengths] == [int]
    np.testing.assert_array_equal(session.feed(one), plain.feed([IDS[3:4]]))
    assert {type(token) for token in session.tokens[0]} == {int}


@pytest.mark.parametrize("fail_at", range(4))
@pytest.mark.parametrize(
    "rows", [[[11], IDS[5:25]], [[11], [12]], [IDS[5:25], IDS[5:25]], [[], IDS[5:25]], [[], [12]]]
)
@pytest.mark.parametrize("all_logits", [False, True])
def test_a_run_that_fails(
    graph: OnnxGraph,
    rows: list[list[int]],
    fail_at: int,
    all_logits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If any run of a call fails, the session is as before the call.

    A call runs a decode step first, then prompts in chunks.
    """
    session, spared = Session(graph, 2), Session(graph, 2)
    for each in (session, spared):
        each.feed([IDS[:5], IDS[:9]])
        each.feed([[1], [2]])
    with monkeypatch.context() as patch:
        left = iter(range(fail_at))
        for holder, name in ((Binding, "run"), (ConcatCache, "_run")):
            plain = getattr(holder, name)

            def run(self: Any, *args: Any, _plain: Any = plain, **options: Any) -> Any:
                if next(left, None) is None:
                    raise ArtifactError("ONNX Runtime failed")
                return _plain(self, *args, **options)

            patch.setattr(holder, name, run)
        failed = False
        try:
            _ = session.feed(rows, all_logits=True) if all_logits else session.feed(rows)
        except ArtifactError:
            failed = True
    if not failed:  # it needs no more runs than these
        spared.feed(rows)
    assert session.tokens == spared.tokens
    for new in ([[3], [4]], [[], [6]], [IDS[:9], [7]], [[8], []]):
        np.testing.assert_allclose(session.feed(new), spared.feed(new), atol=1e-5, rtol=1e-5)
    session.rewind([4, 7])
    spared.rewind([4, 7])
    np.testing.assert_allclose(
        session.feed([[3], [4]]), spared.feed([[3], [4]]), atol=1e-5, rtol=1e-5
    )


def interrupted_at(call: Callable[[], object], at: int) -> bool:
    """Raise KeyboardInterrupt at line number `at` of the session or cache during a call.

    Returns False if the call has fewer lines.
    """
    left = iter(range(at))

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if Path(frame.f_code.co_filename).name not in TRACED or frame.f_code.co_name == "<genexpr>":
            return None
        if event in ("line", "return") and next(left, None) is None:
            raise KeyboardInterrupt
        return trace

    return interrupted(call, trace)


@pytest.mark.parametrize(
    ("verb", "argument"),
    [
        ("advance", [[5]]),
        ("rewind", [2]),
        ("feed", [[5], [6, 7]]),
    ],
)
def test_ctrl_c_at_any_line(graph: OnnxGraph, verb: str, argument: Any) -> None:
    """The call has happened or it has not, in each row, and later calls give the right logits.

    Without care, an interrupted rewind changed logits by 32, and a row had one token more than its
    length.
    """
    rows, row_count = [IDS[:5], IDS[:9]], len(argument)
    spared, at = Session(graph, row_count), 0
    for at in range(0, 10**6, 5 if verb == "feed" else 1):  # all lines of a feed take 2 seconds
        with Session(graph, row_count) as session:
            session.feed(rows[:row_count])
            session.feed([[1], [2]][:row_count])
            if not interrupted_at(lambda: getattr(session, verb)(argument), at):
                break
            assert session.lengths == [len(tokens) for tokens in session.tokens]
            spared.rewind([0] * row_count)
            spared.feed(session.tokens)
            new = [[3], [4]][:row_count]
            np.testing.assert_allclose(session.feed(new), spared.feed(new), atol=1e-4, rtol=1e-4)
    assert at > 10


@pytest.mark.parametrize("fail_at", [1, 3])
def test_ctrl_c_while_the_cache_grows(
    fail_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some layers have larger buffers then, and the next prompt fits into the old ones."""
    graph = open_graph(read_manifest(write_artifact(tmp_path / "a", n_ctx=300)), threads=1)
    session, spared = Session(graph), Session(graph)
    for each in (session, spared):
        each.feed([IDS])
    grow, left = Buffer.grow, iter(range(fail_at))

    def stopped(self: Buffer, *args: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        grow(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Buffer, "grow", stopped)
        with pytest.raises(KeyboardInterrupt):
            session.feed([IDS * 2])
    np.testing.assert_array_equal(session.feed([IDS[:20]]), spared.feed([IDS[:20]]))


@pytest.mark.parametrize("handler", ["feed", "rewind", "close"])
def test_a_signals_handler_uses_the_session_that_it_interrupts(
    artifacts: dict[str, Path], handler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are never wrong: the session refuses, or (after close) the step returns its own."""
    graph = open_graph(read_manifest(artifacts["shared"]), threads=1)
    session, run = Session(graph), Binding.run
    session.feed([IDS[:5]])
    calls = {
        "feed": lambda: session.feed([[7]]),
        "rewind": lambda: session.rewind([3]),
        "close": session.close,
    }
    left = [calls[handler]]

    def interrupting(self: Binding, options: Any = None) -> None:
        if left:
            left.pop()()
        run(self, options)

    monkeypatch.setattr(Binding, "run", interrupting)
    if handler == "close":
        assert session.advance([(9,)]).shape == (1, 280)
        return
    with pytest.raises(UsageError, match="was used while one of its calls was running"):
        session.advance([(9,)])
    with pytest.raises(UsageError, match="this session is closed"):
        session.feed([[8]])


@pytest.mark.parametrize("form", ["shared", "scatter"])
@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_a_cache_that_cannot_grow(
    form: str, fail_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some layers have larger buffers then, and some have not."""
    graph = open_graph(read_manifest(write_artifact(tmp_path / "a", form, n_ctx=300)), threads=1)
    ids = [int(i) for i in np.random.default_rng(3).integers(0, 250, 300)]
    session, spared = Session(graph, 2), Session(graph, 2)
    for each in (session, spared):
        each.feed([ids[:100], ids[:127]])
        each.feed([[1], [2]])
    grow, left = Buffer.grow, iter(range(fail_at))

    def full(self: Buffer, *args: Any) -> None:
        if next(left, None) is None:
            raise MemoryError
        grow(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Buffer, "grow", full)
        with pytest.raises(GptxError, match="no memory for the cache: 2 rows of 256 tokens"):
            session.feed([[3], ids[:20]])
    assert session.tokens == spared.tokens
    for new in ([[3], []], [ids[:10], []], [[4], [5]], [[6], ids[:140]]):
        np.testing.assert_allclose(session.feed(new), spared.feed(new), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "batch_size",
    [None, "a", b"1", 1.5, 1.0, True, 0, -1, [], {}, object(), NAN, -(10**30), 10**400],
)
def test_batch_sizes_that_are_none(graph: OnnxGraph, batch_size: Any) -> None:
    with pytest.raises(UsageError, match=r"batch_size is .*, expected at least 1"):
        Session(graph, batch_size)


@pytest.mark.parametrize(
    "size", ["b", 1.5, 8.0, True, False, 0, -1, 65, 10**30, [8], {}, object(), NAN]
)
def test_sizes_that_are_none(graph: OnnxGraph, size: Any) -> None:
    with pytest.raises(UsageError, match=r"size is .*, expected 1 to 64, the model's context"):
        Session(graph, size=size)


@pytest.mark.parametrize("batch_size", [10**9, 10**12])
def test_more_rows_than_the_machine_has_memory_for(graph: OnnxGraph, batch_size: int) -> None:
    with pytest.raises(
        UsageError, match=r"no memory for the cache: [\d,]+ rows of 1 token would take [\d,.]+ GB"
    ):
        Session(graph, batch_size)
    with pytest.raises(
        UsageError,
        match=r"rows of 64 tokens would take [\d,.]+ GB with their logits, and this machine has",
    ):
        Session(graph, batch_size, size=64)


def test_memory_is_compared_with_what_the_rows_take(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of 2 layers with 2 heads of 8 floats (float32) take 256 bytes per token.

    The logits of a row take 280 floats.
    """
    graph = open_graph(read_manifest(artifacts["shared"]), threads=1)
    needed = 3 * (64 * 256 + 280 * 4)
    monkeypatch.setattr("gptx.kv_cache.memory_limit.memory", lambda: (needed, 0))
    Session(graph, 3, size=64)
    monkeypatch.setattr("gptx.kv_cache.memory_limit.memory", lambda: (needed - 1, 0))
    with pytest.raises(UsageError, match="3 rows of 64 tokens would take 0.0 GB"):
        Session(graph, 3, size=64)
    session = Session(graph, 3)
    session.feed([[1], [2], [3]])
    monkeypatch.setattr("gptx.kv_cache.memory_limit.memory", lambda: (None, None))
    Session(graph, 3, size=64)


def test_a_device_gets_its_cache_by_way_of_one_buffer_here(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only 1 of the 4 buffers that the test above counts is in this machine's memory at a time."""
    needed = 3 * (64 * 64 + 280 * 4)
    graph = open_graph(read_manifest(artifacts["shared"]), threads=1)
    monkeypatch.setattr(OnnxGraph, "device", "cuda")
    monkeypatch.setattr("gptx.kv_cache.memory_limit.memory", lambda: (needed, 0))
    check_memory(graph, 3, 64)
    monkeypatch.setattr("gptx.kv_cache.memory_limit.memory", lambda: (needed - 1, 0))
    with pytest.raises(UsageError, match="3 rows of 64 tokens"):
        check_memory(graph, 3, 64)


def test_a_closed_session(graph: OnnxGraph) -> None:
    session = Session(graph)
    session.feed([IDS[:5]])
    session.close()
    session.close()
    for call in (
        lambda: session.feed([[1]]),
        lambda: session.feed([IDS[:3]], all_logits=True),
        lambda: session.advance([(1,)]),
        lambda: session.advance([[1]]),
        lambda: session.rewind([3]),
        lambda: session.rewind([5]),
    ):
        with pytest.raises(UsageError, match="this session is closed"):
            call()


@pytest.mark.parametrize("all_logits", [None, 1, "yes", [], np.ones(2)])
def test_all_logits_is_true_or_false(graph: OnnxGraph, all_logits: Any) -> None:
    with pytest.raises(UsageError, match="all_logits"):
        Session(graph).feed([[1]], all_logits=all_logits)


def test_two_threads_in_one_session(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(open_graph(read_manifest(artifacts["shared"]), threads=1))
    running, go_on = threading.Event(), threading.Event()
    run = Binding.run

    def slow(self: Binding, options: Any = None) -> None:
        running.set()
        assert go_on.wait(10)
        run(self, options)

    monkeypatch.setattr(Binding, "run", slow)
    other = threading.Thread(target=session.feed, args=([IDS[:5]],))
    other.start()
    assert running.wait(10)
    for call in (
        lambda: session.feed([[1]]),
        lambda: session.advance([(1,)]),
        lambda: session.rewind([0]),
        session.close,
    ):
        with pytest.raises(UsageError, match="another thread is using this session"):
            call()
    go_on.set()
    other.join()
    assert session.tokens == [IDS[:5]]
    session.feed([[1]])  # from this thread, now that the other has ended its call
