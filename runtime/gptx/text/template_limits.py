"""Limits on the time and memory that a chat template may take: it comes with the model, from whoever made that.

Jinja's sandbox keeps a template away from Python's objects, but lets it run for hours or fill the memory. Here every loop
iteration, call, filter and operator is a step that is counted, and the size of whatever it makes is charged. What could
grow by more than its operands ("a" * 10**9) is estimated before it is made. Nothing else of a template is known here.
"""

from __future__ import annotations

import functools
import re
import string
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import nodes, pass_context, pass_eval_context
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 5.0  # of this thread's processor time; rendering 1,000 messages takes some hundredths
SOURCE = 100_000  # characters of a template; the longest in use have some 30,000
DEPTH = 100  # of calls within calls: of macros, and of recursive loops
# Bytes, to which the messages' own are added, times a factor: a template may put the text together message by message
MEMORY, MEMORY_FACTOR = 256 * 2**20, 512  # of all that is made, what is let go again included
VALUE, VALUE_FACTOR = (
    16 * 2**20,
    8,
)  # of one value, each part counted as often as it occurs in it: what writing it takes
SLOW = 200_000  # bytes that filters get which take more than linear time
NUMBER = 100_000  # of parts, a precision, an indentation; as many as range() gives
BITS = 64_000  # of an integer; Python writes none of more than 14,000

_TOO_LARGE = "it makes texts, lists or numbers far larger than a conversation needs"


class TemplateStopped(Exception):
    """A template took more than it may. The text says of what."""


class Budget:
    """What one rendering may still take. `given` is what the template gets: it does not count, and its size is known."""

    def __init__(self, given: Sequence[Mapping[str, Any]]) -> None:
        self._value, self._sizes = sys.maxsize, dict[int, int]()
        sizes = {id(message): self.size(message) for message in given}
        total = sum(sizes.values())
        self._sizes = {**sizes, id(given): total}
        self._memory, self._value = MEMORY + MEMORY_FACTOR * total, VALUE + VALUE_FACTOR * total
        self._until = time.thread_time() + SECONDS
        self._steps = self._depth = 0

    def step(self, size: int = 0) -> None:
        """`size`: bytes that the step has gone through."""
        self._steps += 1 + size // 1024
        if self._steps >= 64:  # asking for the time costs more than most steps
            self._steps = 0
            if time.thread_time() > self._until:
                raise TemplateStopped(f"it ran for more than {SECONDS:g} seconds")

    def expect(self, size: float) -> None:
        """Before something is made that may take `size` bytes."""
        if size > self._memory:
            raise TemplateStopped(_TOO_LARGE)

    def take(self, size: int) -> None:
        self.expect(size)
        self._memory -= size

    def made(self, value: Any) -> Any:
        """Charge a value that a step has made."""
        if isinstance(value, _SIZED):
            self.take(sys.getsizeof(value))
            self.step(self.size(value))
        else:
            self.step()
        return value

    def size(self, value: Any) -> int:
        """Bytes of a value, if nothing in it were shared. [x, x] thirty times over is small in memory, and never done
        when it is written or compared."""
        total, left = 0, [value]
        while left:
            one = left.pop()
            known = self._sizes.get(id(one))
            if known is not None:
                total += known
            elif isinstance(one, str | bytes):
                total += sys.getsizeof(one)
            elif isinstance(one, _CONTAINERS):
                total += 50 + 8 * len(one)
                left.extend(one)
                if isinstance(one, dict):
                    left.extend(one.values())
            else:
                total += 32
            if total > self._value:
                raise TemplateStopped(_TOO_LARGE)
        return total

    def enter(self) -> None:
        """A call begins. No template can catch an error, so a call that fails needs no `leave`."""
        self._depth += 1
        if self._depth > DEPTH:
            raise TemplateStopped(f"its macros or loops call themselves more than {DEPTH} times")

    def leave(self) -> None:
        self._depth -= 1


_CONTAINERS = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
_SIZED = (str, bytes, *_CONTAINERS)
_of_thread = threading.local()


@contextmanager
def within(budget: Budget) -> Iterator[None]:
    """Templates of a LimitedEnvironment that are rendered in the block, in this thread, take from `budget`."""
    before = getattr(_of_thread, "budget", None)
    _of_thread.budget = budget
    try:
        yield
    finally:
        _of_thread.budget = before


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Whose templates stay within a Budget. All filters and globals must be there before `limit_filters`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        # optimized would compute what is constant when a template is compiled, before anything is counted
        super().__init__(**options, optimized=False, finalize=_written)
        self.globals["namespace"] = _Namespace
        self.globals["lipsum"] = _limited(self.globals["lipsum"], _lipsum)

    def limit_filters(self) -> None:
        self.filters = {
            name: _limited(one, _FILTERS.get(name)) for name, one in self.filters.items()
        }
        self.filters |= {
            _STEP: _step,
            _MADE: _made,
            _CONCATENATED: _concatenated,
            "sum": _limited(_sum, None),
        }

    def limited(self, source: str) -> nodes.Template:
        """The template's syntax tree, with steps in it. `from_string` takes it."""
        if len(source) > SOURCE:
            raise TemplateStopped(f"it has {len(source):,} characters, and {SOURCE:,} are the most")
        return _Stepper(self).visit(self.parse(source))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _of_thread.budget
        budget.expect(_operator(operator, left, right))
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _of_thread.budget
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        grows = _METHODS.get(getattr(method, "__name__", ""))
        owner = getattr(method, "__self__", None)
        if grows and isinstance(owner, str | bytes | int):
            args = tuple(map(_counted, args))
            budget.expect(grows(owner, *args, **kwargs))
        if args or kwargs:  # a macro finds them as `varargs` and `kwargs`
            budget.size([args, kwargs])
        budget.enter()
        value = super().call(__context, __obj, *args, **kwargs)
        budget.leave()
        return budget.made(value)


class _Namespace(Namespace):
    """Writing one does not write what is in it: that may be itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


# What is done at each step. These names cannot be written in a template.

_STEP, _MADE, _CONCATENATED = "gptx step", "gptx made", "gptx concatenated"


@pass_context
def _written(_: Context, value: Any) -> Any:
    """What a template writes, {{ value }}."""
    budget = _of_thread.budget
    size = budget.size(value)
    budget.take(size)
    budget.step(size)
    return value


@pass_context
def _step(_: Context, value: Any, text: int = 0) -> Any:
    """`text`: characters of the template that are written in this step."""
    _of_thread.budget.step()
    _of_thread.budget.take(text)
    return value


@pass_context
def _made(_: Context, value: Any) -> Any:
    return _of_thread.budget.made(value)


@pass_eval_context
def _concatenated(context: nodes.EvalContext, values: list[Any]) -> str:
    """a ~ b ~ c"""
    budget = _of_thread.budget
    budget.expect(budget.size(values))
    return budget.made((markup_join if context.autoescape else str_join)(values))


@pass_context
def _sum(
    context: Context, iterable: Any, attribute: str | int | None = None, start: Any = 0
) -> Any:
    """Jinja's own, but that each addition is a step: lists are added too."""
    environment: Any = context.environment
    if attribute is not None:
        iterable = environment.call_filter(
            "map", iterable, kwargs={"attribute": attribute}, context=context
        )
    for item in iterable:
        start = environment.call_binop(context, "+", start, item)
    return start


def _limited(one: Callable[..., Any], grows: Callable[..., float] | None) -> Callable[..., Any]:
    """A filter or function, as a step. `grows`: bytes that it may make, from its arguments."""
    first = int(
        hasattr(one, "jinja_pass_arg")
    )  # context or environment, which comes before the arguments

    @functools.wraps(one)  # with the mark for what is passed
    def limited(*args: Any, **kwargs: Any) -> Any:
        budget = _of_thread.budget
        if grows is not None:
            args = (*args[:first], *map(_counted, args[first:]))
            budget.expect(grows(*args[first:], **kwargs))
        return budget.made(one(*args, **kwargs))

    return limited


class _Stepper(NodeTransformer):
    """Puts steps into a syntax tree: into loops and macros, and around what makes or compares values without a call."""

    def __init__(self, environment: LimitedEnvironment) -> None:
        self._environment = environment

    def _around(self, name: str, node: Any, *args: Any) -> Any:
        made = nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)
        return made.set_environment(self._environment)

    def _body(self, node: Any) -> Any:
        text = sum(
            len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData)
        )
        node = self.generic_visit(node)
        step = self._around(
            _STEP, nodes.Const(None, lineno=node.lineno), nodes.Const(text, lineno=node.lineno)
        )
        node.body.insert(
            0, nodes.ExprStmt(step, lineno=node.lineno).set_environment(self._environment)
        )
        return node

    visit_Macro = visit_CallBlock = visit_FilterBlock = visit_AssignBlock = _body

    def visit_For(self, node: Any) -> Any:
        node = self._body(node)
        if node.test is not None:  # where it is false, the body is not reached
            node.test = self._around(_STEP, node.test)
        return node

    def _value(self, node: Any) -> Any:
        return self._around(_MADE, self.generic_visit(node))

    visit_List = visit_Dict = _value

    def visit_Tuple(self, node: Any) -> Any:
        return self.generic_visit(node) if node.ctx != "load" else self._value(node)

    def visit_Getitem(self, node: Any) -> Any:
        return self._value(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)

    def visit_Concat(self, node: Any) -> Any:
        node = self.generic_visit(node)
        return self._around(_CONCATENATED, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: Any) -> Any:
        node = self.generic_visit(node)
        one = node.ops[0]
        quick = (
            len(node.ops) == 1
            and isinstance(one.expr, nodes.Const)
            and one.op not in ("in", "notin")
        )
        return node if quick else self._around(_STEP, node)


# How many bytes an operation may make, from its operands. What grows by a fixed factor at most is not here.


def _operator(operator: str, left: Any, right: Any) -> float:
    if operator == "%":
        return _percent(left, right) if isinstance(left, str | bytes) else 0
    if isinstance(left, int) and isinstance(right, int):
        bits, others = left.bit_length(), right.bit_length()
        grown = bits + others if operator == "*" else bits * right if operator == "**" else 0
        return sys.maxsize if grown > BITS and bits > 1 else 0
    if operator == "*":
        return max(_times(left, right), _times(right, left))
    return (
        sys.getsizeof(left) + sys.getsizeof(right)
        if isinstance(left, str | bytes | list | tuple)
        else 0
    )


def _times(value: Any, count: Any) -> float:
    if isinstance(value, str | bytes | list | tuple) and isinstance(count, int):
        return sys.getsizeof(value) * max(count, 0)
    return 0


def _percent(form: Any, *args: Any) -> float:
    text = form.decode("latin-1") if isinstance(form, bytes) else form
    begin = "[%)]" if "%(" in text else "%"  # %(name)5d
    specs = re.findall(begin + r"[-#0 +]*((?:\d+|\*)?(?:\.(?:\d+|\*)?)?)", text)
    return _fields(len(text), specs, args, inserted=any("*" in spec for spec in specs))


def _braces(form: str, *args: Any, **kwargs: Any) -> float:
    specs = [spec or "" for _, name, spec, _ in string.Formatter().parse(form) if name is not None]
    return _fields(
        len(form), specs, [*args, *kwargs.values()], inserted=any("{" in spec for spec in specs)
    )


def _fields(length: int, specs: Sequence[str], args: Sequence[Any], *, inserted: bool) -> float:
    """`inserted`: widths may be arguments too."""
    width = max((int(number) for spec in specs for number in re.findall(r"\d+", spec)), default=0)
    if inserted:
        width += max((abs(one) for one in _flat(args) if isinstance(one, int)), default=0)
    return length + len(specs) * (width + _of_thread.budget.size(list(args)))


def _flat(args: Sequence[Any]) -> Iterator[Any]:
    for one in args:
        yield from (
            one.values()
            if isinstance(one, dict)
            else one
            if isinstance(one, list | tuple)
            else [one]
        )


def _width(value: Any, width: Any = 80, *_: Any) -> float:
    return abs(width) if isinstance(width, int) else 0


def _replaced(value: Any, old: Any, new: Any, *_: Any, **__: Any) -> float:
    value, old, new = (one if isinstance(one, bytes) else str(one) for one in (value, old, new))
    return sys.getsizeof(value) + value.count(old) * sys.getsizeof(new)


def _counted(value: Any) -> Any:
    """An iterator (of `map`, say) as a list: how long it is must be known."""
    return list(value) if isinstance(value, Iterator) else value


def _joined(parts: Any, d: Any = "", attribute: Any = None) -> float:
    size = _of_thread.budget.size(parts)
    return size + len(parts) * sys.getsizeof(d) if hasattr(parts, "__len__") else size


def _indented(s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> float:
    n = len(width) if isinstance(width, str) else abs(width) if isinstance(width, int) else 0
    return sys.getsizeof(s) + (str(s).count("\n") + 1) * n


def _divided(value: Any, number: Any, *_: Any, **__: Any) -> float:
    return 0 if number <= NUMBER else sys.maxsize


def _rounded(value: Any, precision: Any = 0, *_: Any, **__: Any) -> float:
    return 0 if abs(precision) <= 400 else sys.maxsize


def _as_json(
    value: Any, ensure_ascii: Any = False, indent: Any = None, *_: Any, **__: Any
) -> float:
    """Each line of a list of n brackets begins with up to n indentations."""
    size = _of_thread.budget.size(value) if isinstance(value, _CONTAINERS) else 0
    if indent is None or not size:
        return size
    n = len(indent) if isinstance(indent, str) else abs(indent)
    return size + n * _depth(value) * size / 32


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [
            list(one.values()) if isinstance(one, dict) else one
            for one in level
            if isinstance(one, _CONTAINERS)
        ]
        level = [one for parts in inner for one in parts]
    return depth


def _slow(value: Any, *_: Any, **__: Any) -> float:
    return 0 if _of_thread.budget.size(value) <= SLOW else sys.maxsize


def _lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> float:
    return 0 if n * max <= NUMBER else sys.maxsize


def _split(value: Any, sep: Any = None, *_: Any, **__: Any) -> float:
    return 60 * (value.count(sep) if sep else len(value) // 2)


def _translated(value: Any, table: Any) -> float:
    return (
        len(value) * (1 + max(map(sys.getsizeof, table.values()), default=0))
        if isinstance(table, dict)
        else 0
    )


_METHODS: dict[str, Callable[..., float]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _width),
    **dict.fromkeys(("split", "rsplit"), _split),
    "expandtabs": lambda value, tabsize=8: value.count("\t") * abs(tabsize),
    "replace": _replaced,
    "join": lambda separator, parts: _joined(parts, separator),
    "format": _braces,
    "format_map": _braces,
    "to_bytes": lambda value, length=1, *_, **__: abs(length),
    "translate": _translated,
}
_FILTERS: dict[str, Callable[..., float]] = {
    **dict.fromkeys(("batch", "slice"), _divided),
    **dict.fromkeys(("pprint", "striptags", "urlize", "wordwrap", "xmlattr"), _slow),
    "center": _width,
    "replace": _replaced,
    "join": _joined,
    "indent": _indented,
    "format": lambda value, *args, **kwargs: _percent(str(value), *args, kwargs),
    "round": _rounded,
    "tojson": _as_json,
}
