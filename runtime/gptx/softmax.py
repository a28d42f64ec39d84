"""Weights and log-probabilities of logits, and exp and log: all that the runtime computes of them.

The library of native operators has an exp and a log of its own, which give the same bits on every
processor; numpy's do not. Without the library, or with GPTX_KERNELS=none, numpy computes all this.
The library's functions run on the calling thread.

V: the number of logits. No error is raised here: NaN and infinity go through to the result.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gptx.ort.native import functions


def exp_weights(
    logits: np.ndarray, top: float, temperature: float = 1.0, *, out: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """exp((logits - top) / temperature) of one row, float32 (V,), and the sum of these weights.

    logits: float32 (V,) without NaN, contiguous. top: the largest logit, a finite number.
    temperature: 1e-30 to 1e30. out: where the weights are written, float32 (V,), contiguous; it may
    be `logits`. A logit of -infinity has a weight of exactly 0, and the library gives 0 for weights
    below e^-87.

    The sum is that of the float32 weights, in float64.
    """
    out = np.empty_like(logits) if out is None else out
    assert logits.dtype == out.dtype == np.float32 and logits.shape == out.shape
    assert logits.flags.c_contiguous and out.flags.c_contiguous
    library = functions()
    if library is not None:
        scale, at = 1 / temperature, out.ctypes.data
        return out, library.gptx_exp_weights(logits.ctypes.data, out.size, top, scale, at)
    np.subtract(logits, top, out=out)
    out /= temperature
    np.exp(out, out=out)
    return out, float(out.sum(dtype=np.float64))


def logsumexp(logits: np.ndarray) -> np.ndarray:
    """log(sum(exp(logits))) over the last axis: (..., V) -> float64 (...)."""
    library = functions()
    if library is None:
        return _logsumexp_of_numpy(logits.astype(np.float64))
    double = logits.dtype == np.float64
    rows = np.ascontiguousarray(logits, np.float64 if double else np.float32)
    out = np.empty(logits.shape[:-1])
    floats, doubles = (None, rows.ctypes.data) if double else (rows.ctypes.data, None)
    library.gptx_logsumexp(floats, doubles, out.size, rows.shape[-1], out.ctypes.data)
    return out


def _logsumexp_of_numpy(logits: np.ndarray) -> np.ndarray:
    # The largest logit is subtracted so that exp cannot overflow.
    top = logits.max(-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        return np.log(np.exp(logits - top).sum(-1)) + top[..., 0]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, float64 (..., V), of logits (..., V)."""
    return logits - logsumexp(logits)[..., None]


def exp(x: np.ndarray | float) -> np.ndarray:
    """e^x of each number, float64; 0 for a result below 2.2e-308."""
    library = functions()
    return _each(np.exp if library is None else library.gptx_exp, x)


def log(x: np.ndarray | float) -> np.ndarray:
    """The logarithm of each number, float64; -infinity for 0, NaN for negative numbers."""
    library = functions()
    return _each(np.log if library is None else library.gptx_log, x)


def _each(function: Callable[..., object], x: np.ndarray | float) -> np.ndarray:
    """Apply a function of numpy or of the library to each number."""
    x = np.asarray(x, np.float64, order="C")
    out = np.empty_like(x)
    if isinstance(function, np.ufunc):
        with np.errstate(all="ignore"):
            function(x, out=out)
    else:
        function(x.ctypes.data, x.size, out.ctypes.data)
    return out
