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
from functools import cache
from pathlib import Path
from typing import Any

from gptx.errors import UsageError

VARIABLE = "GPTX_KERNELS"  # names the kernels to use; "none": ONNX Runtime's operators
# Number of the order of the operators' sums (docs/explanation/native.md). A new order changes bits,
# and takes the next number. gptx.json states the number that a step graph was made for.
KERNEL_ORDER = 1
UNTESTED = {"darwin": "macOS", "win32": "Windows"}  # built and inspected, but never run
NAMES = ("avx512vnni", "avx512", "avx2", "neondot", "neon", "plain")
_left_out: ContextVar[bool] = ContextVar("native operators are left out", default=False)


@cache
def library() -> Path | None:
    """The library's file; None if it was not built."""
    ending = {"win32": "gptx_kernels.dll", "darwin": "libgptx_kernels.dylib"}
    file = Path(__file__).with_name(ending.get(sys.platform, "libgptx_kernels.so"))
    return file if file.exists() else None


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
    if library() is None:
        if asked is None:
            return None
        raise UsageError(
            f"{VARIABLE}={asked}: the library of native operators is not built:"
            " run runtime/kernels/build.py in a clone"
        )
    found = _choose()(asked.encode() if asked else None, threads, huge_pages)
    if found is None:
        raise UsageError(f"{VARIABLE}={asked}: this processor does not have them")
    return found.decode()


def available() -> bool:
    """True if there is a library, and GPTX_KERNELS is not "none"."""
    left_out = os.environ.get(VARIABLE) == "none" or _left_out.get()
    return library() is not None and not left_out


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
    return "none: the library is not built" if library() is None else f"none: {VARIABLE} says so"


@cache
def _choose() -> Any:
    function = ctypes.CDLL(str(library())).gptx_choose
    function.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
    function.restype = ctypes.c_char_p
    return function


def register(options: Any) -> None:
    """Let sessions with these options use native operators."""
    options.register_custom_ops_library(str(library()))
