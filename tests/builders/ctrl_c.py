"""Press Ctrl-C in the middle of a call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def interrupted(call: Callable[[], object], trace: Callable[..., Any]) -> bool:
    """Make a call under a trace function. True if that raised KeyboardInterrupt in it."""
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
