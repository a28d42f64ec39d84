"""The step-level interface: the same tokens give the same logits.

They depend neither on how tokens are divided into calls, nor on other rows, the cache's form or
rewinding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from builders.pretend_cuda import pretend_cuda
from builders.tiny_artifact import write_artifact
from gptx.artifact.manifest import read_manifest
from gptx.errors import GptxError, PromptError, UsageError
from gptx.generation.session import Session
from gptx.kv_cache.shared_buffer import capacity_for
from gptx.ort.graph import OnnxGraph, open_graph

FORMS = ("shared", "growing", "scatter", "shared on CUDA", "scatter on CUDA")
IDS = [int(i) for i in np.random.default_rng(7).integers(0, 250, 60)]


@pytest.fixture(scope="module", params=FORMS)
def graph(request: pytest.FixtureRequest, artifacts: dict[str, Path]) -> Iterator[OnnxGraph]:
    form, _, cuda = request.param.partition(" on ")
    if not cuda:
        yield open_graph(read_manifest(artifacts[form]), threads=1)
        return
    with pretend_cuda():
        yield open_graph(read_manifest(artifacts[form]), device="cuda", threads=1)


@pytest.fixture(scope="module")
def expected(artifacts: dict[str, Path]) -> np.ndarray:
    """Logits after each token of IDS, from one run of the growing graph with an empty cache."""
    graph = open_graph(read_manifest(artifacts["growing"]), threads=1)
    model = graph.manifest.model
    empty = np.zeros((1, model.n_kv_head, 0, model.head_dim), np.float32)
    feeds = {
        "input_ids": np.array([IDS]),
        "attention_mask": np.ones((1, 60), np.int64),
        "position_ids": np.arange(60)[None],
    }
    return graph.session.run(["logits"], {**feeds, **dict.fromkeys(graph.past_names, empty)})[0][0]


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_at_once(graph: OnnxGraph, expected: np.ndarray) -> None:
    with Session(graph) as session:
        close(session.feed([IDS])[0], expected[-1])  # in pieces of 8
        assert session.lengths == [60]
        assert session.tokens == [IDS]


def test_step_by_step(graph: OnnxGraph, expected: np.ndarray) -> None:
    session = Session(graph)
    for index, token in enumerate(IDS):
        close(session.feed([[token]])[0], expected[index])


def test_all_logits(graph: OnnxGraph, expected: np.ndarray) -> None:
    session = Session(graph, 2)
    rows = session.feed([IDS[:20], [IDS[0]]], all_logits=True)
    close(rows[0], expected[:20])
    close(rows[1], expected[:1])
    rows = session.feed([IDS[20:31], []], all_logits=True)
    close(rows[0], expected[20:31])
    assert rows[1].shape == (0, graph.manifest.model.vocab_size)


def test_rows_of_different_lengths(graph: OnnxGraph, expected: np.ndarray) -> None:
    session = Session(graph, 3)
    lengths = [20, 1, 9]
    logits = session.feed([IDS[:n] for n in lengths])
    close(logits, expected[[n - 1 for n in lengths]])
    for step in range(12):
        logits = session.feed([[IDS[n + step]] for n in lengths])
        close(logits, expected[[n + step for n in lengths]])


def test_rows_stop_and_go_on(graph: OnnxGraph, expected: np.ndarray) -> None:
    """Any row may be idle in any step; its tokens and cache must not change."""
    random = np.random.default_rng(3)
    session = Session(graph, 4)
    held = [0, 0, 0, 0]
    for _ in range(40):
        new = [int(n) for n in random.choice([0, 0, 1, 1, 1, 3], 4)]
        new = [n if count + n <= 60 else 0 for n, count in zip(new, held)]
        if not any(new):
            continue
        logits = session.feed([IDS[count : count + n] for n, count in zip(new, held)])
        held = [count + n for n, count in zip(new, held)]
        for row, n in enumerate(new):
            if n:
                close(logits[row], expected[held[row] - 1])
            else:
                assert np.isnan(logits[row]).all()
    assert session.lengths == held


def test_a_row_that_fills_the_context_idles_beside_others(
    graph: OnnxGraph, expected: np.ndarray
) -> None:
    session = Session(graph, 3)
    session.feed([IDS[:10], [*IDS, 1, 2, 3, 4], IDS[:10]])
    for n in range(10, 16):
        close(session.feed([[IDS[n]], [], [IDS[n]]])[[0, 2]], expected[[n, n]])
    with pytest.raises(
        PromptError, match="row 1: 64 tokens held and 1 new ones do not fit into a context of 64"
    ):
        session.feed([[], [5], []])


def test_full_row_idles_beside_others(graph: OnnxGraph, expected: np.ndarray) -> None:
    session = Session(graph, 3, size=24)
    session.feed([IDS[:10], IDS[:24], IDS[:10]])
    for n in range(10, 20):
        close(session.feed([[IDS[n]], [], [IDS[n]]])[2], expected[n])
    session.rewind([20, 23, 20])
    close(session.feed([[IDS[20]], [IDS[23]], []])[:2], expected[[20, 23]])


def test_rewind(graph: OnnxGraph, expected: np.ndarray) -> None:
    session = Session(graph)
    session.feed([IDS[:40]])
    session.rewind([25])
    assert session.tokens == [IDS[:25]]
    for start in (25, 22, 26):  # steps, taken back, and other steps in their place
        session.rewind([start])
        session.feed([[3]])
        session.feed([[4]])
        session.rewind([start])
        for n in range(start, start + 5):
            close(session.feed([[IDS[n]]])[0], expected[n])
    session.rewind([0])
    close(session.feed([IDS[:30]])[0], expected[29])


def test_rewind_rows(graph: OnnxGraph, expected: np.ndarray) -> None:
    session = Session(graph, 2)
    session.feed([IDS[:30], IDS[:12]])
    for n in range(4):
        session.feed([[1], [2]] if n % 2 else [[], [3]])
    session.rewind([14, 12])
    close(session.feed([[IDS[14]], [IDS[12]]]), expected[[14, 12]])
    for n in range(3):
        session.feed([[5 + n], [7 + n]])
    session.rewind([15, 13])
    for n in range(13, 15):
        close(session.feed([[IDS[n + 2]], [IDS[n]]]), expected[[n + 2, n]])
    close(session.feed([IDS[17:22], [IDS[15]]]), expected[[21, 15]])


def test_rewind_while_only_later_rows_run(graph: OnnxGraph, expected: np.ndarray) -> None:
    session = Session(graph, 4)
    session.feed([IDS[:30], IDS[:9], IDS[:20], IDS[:2]])
    for n in range(3):
        session.feed([[], [5 + n], [7 + n], []])
    session.rewind([30, 9, 20, 1])
    close(session.feed([[], [IDS[9]], [IDS[20]], []])[1:3], expected[[9, 20]])
    session.feed([[], [], [1], []])
    session.rewind([29, 10, 21, 1])
    close(session.feed([[], [], [IDS[21]], []])[2], expected[21])
    close(session.feed([[IDS[29]], [IDS[10]], [IDS[22]], [IDS[1]]]), expected[[29, 10, 22, 1]])


def test_feed_returns_arrays_of_its_own(graph: OnnxGraph) -> None:
    session = Session(graph)
    first = session.feed([IDS[:3]])
    kept = first.copy()
    session.feed([IDS[3:5]])
    np.testing.assert_array_equal(first, kept)


def test_graph_without_num_logits_to_keep(tmp_path: Path, expected: np.ndarray) -> None:
    """A graph without that input, as optimum's exporter writes it."""
    graph = open_graph(
        read_manifest(
            write_artifact(tmp_path / "a", "growing", keep=False, padding=3, prefill_chunk=8)
        ),
        threads=1,
    )
    assert graph.logits_input is None
    session = Session(graph)
    close(session.feed([IDS[:20]])[0], expected[19])
    close(session.feed([[IDS[20]]])[0], expected[20])


@pytest.mark.parametrize("form", [form for form in FORMS if form != "growing"])
def test_the_buffer_grows_with_use(form: str, tmp_path: Path) -> None:
    form, _, cuda = form.partition(" on ")
    artifact = read_manifest(write_artifact(tmp_path / "a", form, n_ctx=600))
    with pretend_cuda() if cuda else nullcontext():
        graph = open_graph(artifact, device="cuda" if cuda else "cpu", threads=1)
        check_growth(graph)


def check_growth(graph: OnnxGraph) -> None:
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 250, 600)]
    session, whole = Session(graph, 2), Session(graph, size=600)
    assert session.capacity == 128
    session.feed([ids[:100], ids[:120]])
    for n in range(120, 135):
        session.feed([[ids[n - 20]], [ids[n]]])
    assert session.capacity == 256
    session.feed([[], ids[135:300]])
    assert session.capacity == 512
    assert whole.capacity == 600
    close(session.feed([[], ids[300:600]])[1], whole.feed([ids])[0])
    assert session.capacity == 600
    session.rewind([100, 120])
    whole.rewind([0])
    expected, single = whole.feed([ids[:300]], all_logits=True)[0], Session(graph)
    single.feed([ids[:3]])
    for n in range(3, 260):  # past 128 and 256
        close(single.feed([[ids[n]]])[0], expected[n])
    for n in range(120, 260):
        close(session.feed([[ids[n - 20]], [ids[n]]]), expected[[n - 20, n]])


def test_what_was_rewound_takes_no_room(artifacts: dict[str, Path]) -> None:
    session = Session(open_graph(read_manifest(artifacts["growing"]), threads=1), 2)
    session.feed([IDS[:30], IDS[:20]])
    session.rewind([7, 11])
    assert session.capacity == 11


def test_no_memory_for_the_cache(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> np.ndarray:
        raise MemoryError

    graph = open_graph(read_manifest(artifacts["shared"]), threads=1)
    session = Session(graph, 2)
    monkeypatch.setattr("gptx.kv_cache.shared_buffer.Buffer.grow", full)
    with pytest.raises(
        GptxError,
        match="no memory for the cache: 2 rows of 64 tokens would take 0.0 GB; run fewer rows",
    ):
        Session(graph, 2)
    assert session.capacity == 64


@pytest.mark.parametrize(
    ("length", "capacity"), [(1, 128), (128, 128), (129, 256), (257, 512), (513, 600), (600, 600)]
)
def test_capacity(length: int, capacity: int) -> None:
    assert capacity_for(length, 600) == capacity


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        ([[]], PromptError, "every row is empty"),
        ([[1], [2]], UsageError, "2 rows"),
        ([[280]], PromptError, "token id 280 is outside the model's vocabulary: 0 to 279"),
        ([[1, -1]], PromptError, "token id -1"),
        ([[1, 999]], PromptError, "token id 999"),
        ([[1.5]], PromptError, "1.5"),
        ([["a", "b"]], PromptError, "'a'"),
        ([[0] * 65], PromptError, "0 tokens held and 65 new ones do not fit into a context of 64"),
    ],
)
def test_what_cannot_be_fed(
    graph: OnnxGraph, rows: list, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        Session(graph).feed(rows)


def test_a_refused_feed_changes_nothing(graph: OnnxGraph, expected: np.ndarray) -> None:
    session = Session(graph)
    session.feed([IDS[:60]])
    with pytest.raises(
        PromptError, match="60 tokens held and 5 new ones do not fit into a context of 64"
    ):
        session.feed([IDS[:5]])
    assert session.lengths == [60]
    session.feed([IDS[:4]])
    with pytest.raises(
        PromptError, match="64 tokens held and 1 new ones do not fit into a context of 64"
    ):
        session.feed([IDS[:1]])
    assert session.lengths == [64]


def test_bad_arguments(graph: OnnxGraph) -> None:
    with pytest.raises(UsageError, match="batch_size"):
        Session(graph, 0)
    with pytest.raises(UsageError, match="1 to 64"):
        Session(graph, size=65)
    session = Session(graph)
    session.feed([IDS[:5]])
    with pytest.raises(UsageError, match="cannot be rewound to 6"):
        session.rewind([6])
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.feed([[1]])
