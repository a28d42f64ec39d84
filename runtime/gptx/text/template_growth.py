"""Estimate the size of the result of an operation in a chat template before it is computed.

There are estimates only for operations whose results can be far larger than their operands, such as
"a" * 10**9. All sizes are in bytes. sys.maxsize means: more than any budget has.
"""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gptx.text.template_budget import CONTAINERS, current_budget

SLOW_INPUT = 200_000  # bytes; the largest input of filters that take more than linear time
MOST_PARTS = 100_000  # of batch, slice and lipsum; Jinja's sandbox limits range() to as many
MOST_DIGITS = 400  # of round()
MOST_BITS = 64_000  # of an integer; Python refuses to write more than 14,000 bits
BYTES_PER_VALUE = 32  # Budget.size counts at least this much for each value


def operator_growth(operator: str, left: Any, right: Any) -> float:
    """The estimated bytes of `left operator right`, for the operators + * ** %."""
    if operator == "%":
        return _percent(left, right) if isinstance(left, str | bytes) else 0
    if isinstance(left, int) and isinstance(right, int):
        bits, others = left.bit_length(), right.bit_length()
        grown = bits + others if operator == "*" else bits * right if operator == "**" else 0
        return sys.maxsize if grown > MOST_BITS and bits > 1 else 0
    if operator == "*":
        return max(_repeated(left, right), _repeated(right, left))
    if isinstance(left, str | bytes | list | tuple):
        return sys.getsizeof(left) + sys.getsizeof(right)
    return 0


def as_list(value: Any) -> Any:
    """An iterator (of `map`, for instance) as a list, so that its length is known."""
    return list(value) if isinstance(value, Iterator) else value


# Estimates, one for each operation. They take the same arguments as the method or filter itself.


def _repeated(value: Any, count: Any) -> float:
    if isinstance(value, str | bytes | list | tuple) and isinstance(count, int):
        return sys.getsizeof(value) * max(count, 0)
    return 0


def _percent(form: Any, *args: Any) -> float:
    """form % args"""
    text = form.decode("latin-1") if isinstance(form, bytes) else form
    begin = "[%)]" if "%(" in text else "%"  # %(name)5d
    specs = re.findall(begin + r"[-#0 +]*((?:\d+|\*)?(?:\.(?:\d+|\*)?)?)", text)
    return _formatted(len(text), specs, args, widths_in_args=any("*" in spec for spec in specs))


def _braces(form: str, *args: Any, **kwargs: Any) -> float:
    """form.format(*args, **kwargs)"""
    specs = [spec or "" for _, name, spec, _ in string.Formatter().parse(form) if name is not None]
    values = [*args, *kwargs.values()]
    return _formatted(len(form), specs, values, widths_in_args=any("{" in spec for spec in specs))


def _formatted(
    length: int, specs: Sequence[str], args: Sequence[Any], *, widths_in_args: bool
) -> float:
    """The result of a format string of `length` characters.

    specs: the format of each field, such as "10.2". widths_in_args: True if the arguments may also
    be widths or precisions.
    """
    width = max((int(number) for spec in specs for number in re.findall(r"\d+", spec)), default=0)
    if widths_in_args:
        width += max((abs(one) for one in _flat(args) if isinstance(one, int)), default=0)
    return length + len(specs) * (width + current_budget().size(list(args)))


def _flat(args: Sequence[Any]) -> Iterator[Any]:
    """The arguments, with the values of those that are dicts, lists or tuples."""
    for one in args:
        if isinstance(one, dict):
            yield from one.values()
        elif isinstance(one, list | tuple):
            yield from one
        else:
            yield one


def _width(value: Any, width: Any = 80, *_: Any) -> float:
    return abs(width) if isinstance(width, int) else 0


def _replaced(value: Any, old: Any, new: Any, *_: Any, **__: Any) -> float:
    value, old, new = (one if isinstance(one, bytes) else str(one) for one in (value, old, new))
    return sys.getsizeof(value) + value.count(old) * sys.getsizeof(new)


def _joined(parts: Any, d: Any = "", attribute: Any = None) -> float:
    size = current_budget().size(parts)
    return size + len(parts) * sys.getsizeof(d) if hasattr(parts, "__len__") else size


def _indented(s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> float:
    n = len(width) if isinstance(width, str) else abs(width) if isinstance(width, int) else 0
    return sys.getsizeof(s) + (str(s).count("\n") + 1) * n


def _parts(value: Any, number: Any, *_: Any, **__: Any) -> float:
    return 0 if number <= MOST_PARTS else sys.maxsize


def _rounded(value: Any, precision: Any = 0, *_: Any, **__: Any) -> float:
    return 0 if abs(precision) <= MOST_DIGITS else sys.maxsize


def _as_json(
    value: Any, ensure_ascii: Any = False, indent: Any = None, *_: Any, **__: Any
) -> float:
    """With an indent, each value has its own line, indented once for each open bracket."""
    size = current_budget().size(value) if isinstance(value, CONTAINERS) else 0
    if indent is None or not size:
        return size
    n = len(indent) if isinstance(indent, str) else abs(indent)
    lines = size / BYTES_PER_VALUE
    return size + lines * n * _nesting(value)


def _nesting(value: Any) -> int:
    """The number of levels of a value: 1 for a number or text, 2 for [1, 2]."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [
            list(one.values()) if isinstance(one, dict) else one
            for one in level
            if isinstance(one, CONTAINERS)
        ]
        level = [one for parts in inner for one in parts]
    return depth


def _slow(value: Any, *_: Any, **__: Any) -> float:
    return 0 if current_budget().size(value) <= SLOW_INPUT else sys.maxsize


def lipsum_growth(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> float:
    """Jinja's global function lipsum: n paragraphs of at most `max` words."""
    return 0 if n * max <= MOST_PARTS else sys.maxsize


def _split(value: Any, sep: Any = None, *_: Any, **__: Any) -> float:
    return 60 * (value.count(sep) if sep else len(value) // 2)


def _translated(value: Any, table: Any) -> float:
    if not isinstance(table, dict):
        return 0
    return len(value) * (1 + max(map(sys.getsizeof, table.values()), default=0))


METHOD_GROWTH: dict[str, Callable[..., float]] = {
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
FILTER_GROWTH: dict[str, Callable[..., float]] = {
    **dict.fromkeys(("batch", "slice"), _parts),
    **dict.fromkeys(("pprint", "striptags", "urlize", "wordwrap", "xmlattr"), _slow),
    "center": _width,
    "replace": _replaced,
    "join": _joined,
    "indent": _indented,
    "format": lambda value, *args, **kwargs: _percent(str(value), *args, kwargs),
    "round": _rounded,
    "tojson": _as_json,
}
