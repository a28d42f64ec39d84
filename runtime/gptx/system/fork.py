"""What a forked child must do anew: of all threads, it has only the one that forked.

Locks that the others held stay locked there.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

_methods: list[weakref.WeakMethod[Callable[[], None]]] = []


def after_fork(method: Callable[[], None]) -> None:
    """Call a method in each child that is forked from now on, as long as its object lives."""
    _methods[:] = [one for one in _methods if one() is not None]
    _methods.append(weakref.WeakMethod(method))


def _in_child() -> None:
    for one in _methods:
        if (method := one()) is not None:
            method()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)
