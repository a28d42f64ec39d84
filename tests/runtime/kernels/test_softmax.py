"""exp, log, weights and logsumexp of the native library: right, and the same on all kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from builders.native_graphs import native_kernels, needs_library
from gptx.errors import UsageError
from gptx.generation.options import Options
from gptx.generation.sampling import Sampler
from gptx.ort import native
from gptx.softmax import exp, exp_weights, log, log_softmax, logsumexp

ODD = [0.0, -0.0, 1e-45, -1e-40, 1e38, -1e38, 3.4e38, 88.0, -87.0, -87.1, -math.inf]
LOGITS = arrays(
    np.float32,
    st.integers(1, 70),
    elements=st.one_of(st.sampled_from(np.float32(ODD).tolist()), st.floats(-150, 150, width=32)),
)
ANY = arrays(np.float64, st.integers(1, 70), elements=st.one_of(st.floats(), st.floats(-750, 750)))


@contextmanager
def kernels(name: str) -> Iterator[None]:
    """The kernels of this name; "": the best of this CPU; "none": numpy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.VARIABLE, name)
        native.choose_kernels(1)
        yield


def names() -> list[str]:
    """The kernels of this CPU other than plain."""
    found = []
    for name in native.NAMES[:-1]:
        try:
            with kernels(name):
                found.append(name)
        except UsageError:
            pass
    return found


def on_all(compute: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """The result of `compute` on plain kernels, which must be that on all others, to the bit."""
    with kernels("plain"):
        expected = compute()
    for name in names():
        with kernels(name):
            for ours, theirs in zip(compute(), expected):
                numbers = ~np.isnan(theirs)  # the bits of NaN are not promised
                assert np.array_equal(np.isnan(ours), ~numbers)
                assert ours[numbers].tobytes() == theirs[numbers].tobytes(), name
    return expected


def ulps(ours: np.ndarray, true: np.ndarray) -> float:
    """The largest error, in units in the last place of the true value (longdouble)."""
    unit = np.spacing(np.abs(true.astype(ours.dtype)))
    return float(np.max(np.abs(ours - true) / unit, initial=0))


@needs_library
@given(LOGITS, st.floats(0.01, 100))
def test_weights_are_exp_of_the_logits(logits: np.ndarray, temperature: float) -> None:
    top = float(logits.max())
    if top == -math.inf:
        return
    weights, total = on_all(lambda: [np.array(x) for x in exp_weights(logits, top, temperature)])
    with np.errstate(over="ignore"):
        scaled = (logits - np.float32(top)) * np.float32(1 / temperature)
    true = np.where(scaled < -87, 0, np.exp(scaled.astype(np.longdouble)))
    assert ulps(weights, true) <= 2
    assert total == pytest.approx(math.fsum(weights), rel=1e-14)
    assert not weights[logits == -math.inf].any()
    again = logits.copy()
    with kernels("plain"):
        assert exp_weights(again, top, temperature, out=again)[0] is again
    assert again.tobytes() == weights.tobytes()


@needs_library
@given(LOGITS)
def test_logsumexp_is_that_of_longdouble(logits: np.ndarray) -> None:
    if logits.max() == -math.inf:
        return
    rows = np.stack((logits, logits[::-1]))
    wide = rows.astype(np.float64)
    found, found_wide = on_all(lambda: [logsumexp(rows), logsumexp(wide)])
    assert found.tobytes() == found_wide.tobytes()
    top = wide.max(-1, keepdims=True).astype(np.longdouble)
    true = np.log(np.exp(wide - top).sum(-1)) + top[:, 0]
    assert np.abs(found - true).max() <= 2**-52 * (np.abs(top).max() + math.log(len(logits)) + 1)
    with kernels("none"):
        np.testing.assert_allclose(logsumexp(rows), found, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", [pytest.param("", marks=needs_library), "none"])
def test_logsumexp_of_infinity_and_nan(name: str) -> None:
    inf, nan = math.inf, math.nan
    with kernels(name):
        rows = np.array([[inf, 900, -inf], [-inf] * 3, [nan, inf, 1], [-inf, 2, nan]])
        np.testing.assert_array_equal(logsumexp(rows), [inf, -inf, nan, nan])
        np.testing.assert_array_equal(logsumexp(rows.astype(np.float32)), [inf, -inf, nan, nan])
        assert logsumexp(np.zeros((2, 3, 4), np.float16)).shape == (2, 3)
        np.testing.assert_allclose(exp(log_softmax(rows[3:, :2])), [[0, 1]])
        np.testing.assert_array_equal(exp(np.array([-inf, inf, nan, 0])), [0, inf, nan, 1])
        np.testing.assert_array_equal(
            log(np.array([0, -0.0, -1, inf, nan, 1])), [-inf, -inf, nan, inf, nan, 0]
        )
        assert float(exp(0.0)) == 1 and float(log(1.0)) == 0


@needs_library
@given(ANY)
def test_exp_and_log_are_those_of_longdouble(x: np.ndarray) -> None:
    e, logarithm = on_all(lambda: [exp(x), log(x)])
    with np.errstate(all="ignore"):
        true_e, true_log = np.exp(x.astype(np.longdouble)), np.log(x.astype(np.longdouble))
    inside = (x > -708.39) & (x < 709.78)
    assert ulps(e[inside], true_e[inside]) <= 1.1
    assert not e[x < -708.4].any() and np.isposinf(e[x > 709.79]).all()
    inside = (x > 0) & (x < math.inf)
    assert ulps(logarithm[inside], true_log[inside]) <= 1
    assert np.isnan(logarithm[x < 0]).all() and np.isneginf(logarithm[x == 0]).all()


@needs_library
def test_exp_and_log_near_their_seams() -> None:
    """Where the polynomials end, and where a logarithm is near 0."""
    random = np.random.default_rng(0)
    near = [random.normal(1, spread, 50_000) for spread in (1e-9, 1e-3, 0.1)]
    root = random.uniform(0.70, 0.72, 50_000)
    x = np.abs(np.concatenate([*near, root, 2 * root, np.exp(random.uniform(-745, 709, 50_000))]))
    _, logarithm = on_all(lambda: [exp(x), log(x)])
    assert ulps(logarithm, np.log(x.astype(np.longdouble))) <= 1
    x = random.integers(-1000, 1000, 100_000) / 2 * math.log(2) + random.normal(0, 1e-6, 100_000)
    e, _ = on_all(lambda: [exp(x), log(x)])
    assert ulps(e, np.exp(x.astype(np.longdouble))) <= 1.1


@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
def test_another_librarys_float_state_changes_nothing() -> None:
    """torch lets the processor take subnormals for zero, and so might the app's libraries."""
    torch = pytest.importorskip("torch")
    x = np.array([1e-310, 5e-324, 1.0])
    expected = np.log(x)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps subnormals")
    try:
        found, flushed = log(x), x * 1
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_allclose(found, expected)
    assert flushed[0] == 0  # the setting is as it was


@needs_library
def test_a_seed_gives_the_same_draws_on_all_kernels() -> None:
    logits = np.random.default_rng(1).normal(0, 3, 5003).astype(np.float32)

    def draws() -> list[np.ndarray]:
        sampler = Sampler(
            Options(temperature=0.8), prompt=(), end_tokens=(), seed=7, n_logits=len(logits)
        )
        return [np.array([sampler.sample(logits.copy()) for _ in range(200)])]

    (drawn,) = on_all(draws)
    assert len(set(drawn.tolist())) > 20
