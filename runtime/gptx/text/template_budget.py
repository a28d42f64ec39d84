"""The time and memory that one rendering of a chat template may take.

A template comes with a model, and its author may be a stranger. Jinja's sandbox keeps a template
away from Python's objects. It does not prevent a template from running for hours or filling the
memory. So a Budget counts each step of a rendering, and subtracts the size of each new value.
template_sandbox.py calls the methods; nothing here knows Jinja.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

SECONDS = 5.0  # of this thread's processor time; 1,000 messages take some hundredths of a second
DEPTH = 100  # of nested calls (macros and recursive loops)
# Limits in bytes: a constant, plus a factor times the size of the messages. The factors are large
# because a template may put the whole conversation together again for each message.
MEMORY, MEMORY_FACTOR = 256 * 2**20, 512  # of all values made, freed ones included
# For one value. A part that a value holds several times counts several times, as in its text.
VALUE, VALUE_FACTOR = 16 * 2**20, 8
_STEPS_PER_CLOCK = 64  # between readings of the clock; one reading takes longer than most steps

TOO_LARGE = "it makes texts, lists or numbers far larger than a conversation needs"
CONTAINERS = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
_CHARGED = (str, bytes, *CONTAINERS)
_of_thread = threading.local()


class TemplateStopped(Exception):
    """A template exceeded a limit. The message says which."""


class Budget:
    """The time and memory that are left to one rendering.

    messages: the conversation that is rendered. It sets the limits, and is not charged itself.
    """

    def __init__(self, messages: Sequence[Mapping[str, Any]]) -> None:
        self._value, self._sizes = sys.maxsize, dict[int, int]()  # _sizes: known sizes by id()
        sizes = {id(message): self.size(message) for message in messages}
        total = sum(sizes.values())
        self._sizes = {**sizes, id(messages): total}
        self._memory, self._value = MEMORY + MEMORY_FACTOR * total, VALUE + VALUE_FACTOR * total
        self._until = time.thread_time() + SECONDS
        self._steps = self._depth = 0

    def step(self, size: int = 0) -> None:
        """Count a step that went through `size` bytes. Raises TemplateStopped after SECONDS."""
        self._steps += 1 + size // 1024
        if self._steps >= _STEPS_PER_CLOCK:
            self._steps = 0
            if time.thread_time() > self._until:
                raise TemplateStopped(f"it ran for more than {SECONDS:g} seconds")

    def expect(self, size: float) -> None:
        """Raise TemplateStopped if the budget has less than `size` bytes left."""
        if size > self._memory:
            raise TemplateStopped(TOO_LARGE)

    def charge(self, size: int) -> None:
        """Take `size` bytes from the budget. Raises TemplateStopped if it has less left."""
        self.expect(size)
        self._memory -= size

    def charge_value(self, value: Any) -> Any:
        """Charge a value that a step has made, and count the step. Returns the value."""
        if isinstance(value, _CHARGED):
            self.charge(sys.getsizeof(value))
            self.step(self.size(value))
        else:
            self.step()
        return value

    def size(self, value: Any) -> int:
        """Bytes of a value, with each part counted as often as the value holds it.

        Thirty steps of x = [x, x] make a list that is small in memory, but has 2**30 parts when it
        is written or compared. Raises TemplateStopped if the value is larger than the limit.
        """
        total, left = 0, [value]
        while left:
            one = left.pop()
            known = self._sizes.get(id(one))
            if known is not None:
                total += known
            elif isinstance(one, str | bytes):
                total += sys.getsizeof(one)
            elif isinstance(one, CONTAINERS):
                total += 50 + 8 * len(one)
                left.extend(one)
                if isinstance(one, dict):
                    left.extend(one.values())
            else:
                total += 32
            if total > self._value:
                raise TemplateStopped(TOO_LARGE)
        return total

    def enter(self) -> None:
        """Count the beginning of a call. Raises TemplateStopped if calls nest too deep.

        A call that fails needs no `leave`: templates cannot catch errors.
        """
        self._depth += 1
        if self._depth > DEPTH:
            raise TemplateStopped(f"its macros or loops call themselves more than {DEPTH} times")

    def leave(self) -> None:
        """Count the end of a call."""
        self._depth -= 1


@contextmanager
def limited_by(budget: Budget) -> Iterator[None]:
    """Use `budget` for all templates that this thread renders in the block."""
    before = getattr(_of_thread, "budget", None)
    _of_thread.budget = budget
    try:
        yield
    finally:
        _of_thread.budget = before


def current_budget() -> Budget:
    """The budget of this thread's current rendering."""
    return _of_thread.budget
