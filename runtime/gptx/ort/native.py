"""gptx's native operators for ONNX Runtime: find their library, choose kernels, register them.

runtime/kernels holds the sources, and kernels/build.py builds the library into this folder. Without
the library, artifacts run on ONNX Runtime's own operators.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from gptx.errors import ArtifactError, UsageError

VARIABLE = "GPTX_KERNELS"  # names the kernels to use; "none": ONNX Runtime's operators
# Number of the order of the operators' sums (docs/explanation/native.md). A new order changes bits,
# and takes the next number. gptx.json states the number that a step graph was made for.
KERNEL_ORDER = 1
# Number of the library's interface: a library that was built from other sources is not used.
INTERFACE = 4
# Number of the layout of packed weights in a file (runtime/kernels/packed_file.h).
PACKING = 1
UNTESTED = {"darwin": "macOS", "win32": "Windows"}  # built and inspected, but never run
NAMES = ("avx512vnni", "avxvnni", "avx512", "avx2", "neondot", "neon", "plain")
_left_out: ContextVar[bool] = ContextVar("native operators are left out", default=False)


class PackedUse(IntEnum):
    """What sessions do with a file of packed weights; the numbers of packed_file.h."""

    COPY = 0  # into memory of their own, in pages of 2 MB
    MAP = 1  # read them in place, shared with other processes
    WRITE = 2  # pack the weights, and write them to the file


def library() -> Path | None:
    """The library's file; None if native operators cannot be used (see why_no_library)."""
    return _file() if isinstance(_load(), ctypes.CDLL) else None


def why_no_library() -> str | None:
    """Why native operators cannot be used; None if they can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def choose_kernels(threads: int, *, huge_pages: bool = True) -> str | None:
    """Choose the kernels of the sessions that are opened next; returns their name.

    None: there is no library, or GPTX_KERNELS is "none". threads: the most that a session's
    operators use. huge_pages: ask the system for pages of 2 MB for the weights. Only one thread at
    a time may choose kernels and open sessions.

    Raises UsageError if GPTX_KERNELS names no kernels, or kernels that this processor or the
    library does not have.
    """
    asked = os.environ.get(VARIABLE) or None
    if asked == "none" or _left_out.get():
        return None
    if asked is not None and asked not in NAMES:
        raise UsageError(f"{VARIABLE}={asked}: expected none or one of {', '.join(NAMES)}")
    loaded = _load()
    if isinstance(loaded, str):
        if asked is None:
            return None
        raise UsageError(f"{VARIABLE}={asked}: {loaded}: run runtime/kernels/build.py in a clone")
    found = loaded.gptx_choose(asked.encode() if asked else None, threads, huge_pages)
    if found is None:
        raise UsageError(f"{VARIABLE}={asked}: this processor or the library does not have them")
    return found.decode()


def available() -> bool:
    """True if there is a library, and GPTX_KERNELS is not "none"."""
    return functions() is not None and not _left_out.get()


def functions() -> ctypes.CDLL | None:
    """The library for its functions of logits; None without it, or if GPTX_KERNELS is "none".

    gptx.softmax calls them. They run on the kernels that were chosen last, or on the best.
    """
    if os.environ.get(VARIABLE) == "none":
        return None
    loaded = _load()
    return None if isinstance(loaded, str) else loaded


@contextmanager
def onnx_runtime_only() -> Iterator[None]:
    """Let this thread open sessions on ONNX Runtime's operators, as GPTX_KERNELS=none does."""
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


def describe() -> str:
    """The kernels that step graphs run on here, or why they run on none."""
    try:
        chosen = choose_kernels(1)
    except UsageError as error:
        return str(error)
    if chosen is not None:
        system = UNTESTED.get(sys.platform)
        return f"{chosen}; untested on {system}" if system else chosen
    return f"none: {why_no_library() or f'{VARIABLE} says so'}"


@contextmanager
def packed_weights(file: Path, use: PackedUse) -> Iterator[None]:
    """Sessions that are opened inside use a file of packed weights.

    Only one thread at a time may open sessions. Raises ArtifactError for a file that cannot be read
    or written. A session raises ONNX Runtime's error if the file is of another graph.
    """
    loaded = _load()
    assert isinstance(loaded, ctypes.CDLL)
    _expect(loaded.gptx_packed(os.fsencode(file), use), file)
    try:
        yield
    except BaseException:
        loaded.gptx_packed(None, use)
        raise
    _expect(loaded.gptx_packed(None, use), file)


def _expect(problem: bytes | None, file: Path) -> None:
    if problem is not None:
        raise ArtifactError(f"{file} cannot be used: {problem.decode()}")


def _file() -> Path:
    ending = {"win32": "gptx_kernels.dll", "darwin": "libgptx_kernels.dylib"}
    return Path(__file__).with_name(ending.get(sys.platform, "libgptx_kernels.so"))


@cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    if not _file().exists():
        return "the library of native operators is not built"
    try:
        loaded = ctypes.CDLL(str(_file()))
    except OSError as error:
        return f"the library of native operators cannot be loaded: {error}"
    if not hasattr(loaded, "gptx_interface") or loaded.gptx_interface() != INTERFACE:
        return "the library of native operators was built from other sources"
    loaded.gptx_choose.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
    loaded.gptx_choose.restype = ctypes.c_char_p
    loaded.gptx_packed.argtypes = (ctypes.c_char_p, ctypes.c_int)
    loaded.gptx_packed.restype = ctypes.c_char_p
    array, count = ctypes.c_void_p, ctypes.c_int64
    loaded.gptx_exp_weights.argtypes = (array, count, ctypes.c_float, ctypes.c_float, array)
    loaded.gptx_exp_weights.restype = ctypes.c_double
    loaded.gptx_logsumexp.argtypes = (array, array, count, count, array)
    loaded.gptx_exp.argtypes = loaded.gptx_log.argtypes = (array, count, array)
    for function in (loaded.gptx_logsumexp, loaded.gptx_exp, loaded.gptx_log):
        function.restype = None
    return loaded


def register(options: Any) -> None:
    """Let sessions with these options use native operators."""
    options.register_custom_ops_library(str(library()))
