"""Jinja's sandbox for chat templates, with a budget of time and memory (template_budget.py).

Every loop iteration, call, filter and operator counts as a step, and the size of its result is
taken from the budget. If the result can be far larger than the operands, its size is first
estimated (template_growth.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jinja2 import nodes, pass_context, pass_eval_context
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from gptx.text.template_budget import TemplateStopped, current_budget
from gptx.text.template_growth import (
    FILTER_GROWTH,
    METHOD_GROWTH,
    as_list,
    lipsum_growth,
    operator_growth,
)

SOURCE = 100_000  # characters of a template; the longest in use have about 30,000
# Filters that _StepInserter puts into a template. No template can name them: they have spaces.
_STEP, _CHARGE, _CONCATENATE = "gptx step", "gptx charge", "gptx concatenate"


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """An environment whose templates take from the current budget.

    Add filters and globals first, then call `limit_filters`.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        # optimized=True would compute constant expressions while a template is compiled, before
        # anything is counted.
        super().__init__(**options, optimized=False, finalize=_write)
        self.globals["namespace"] = _Namespace
        self.globals["lipsum"] = _limited(self.globals["lipsum"], lipsum_growth)

    def limit_filters(self) -> None:
        """Let every filter take from the budget."""
        self.filters = {
            name: _limited(one, FILTER_GROWTH.get(name)) for name, one in self.filters.items()
        }
        self.filters |= {
            _STEP: _step,
            _CHARGE: _charge,
            _CONCATENATE: _concatenate,
            "sum": _limited(_sum, None),
        }

    def limited(self, source: str) -> nodes.Template:
        """The syntax tree of a template, with steps inserted, for `from_string`.

        Raises TemplateStopped for a source that is too long.
        """
        if len(source) > SOURCE:
            raise TemplateStopped(
                f"it has {len(source):,} characters, and at most {SOURCE:,} are allowed"
            )
        return _StepInserter(self).visit(self.parse(source))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = current_budget()
        budget.expect(operator_growth(operator, left, right))
        return budget.charge_value(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        growth = METHOD_GROWTH.get(getattr(method, "__name__", ""))
        owner = getattr(method, "__self__", None)
        if growth and isinstance(owner, str | bytes | int):
            args = tuple(map(as_list, args))
            budget.expect(growth(owner, *args, **kwargs))
        if args or kwargs:  # a macro can read them as the variables `varargs` and `kwargs`
            budget.size([args, kwargs])
        budget.enter()
        value = super().call(__context, __obj, *args, **kwargs)
        budget.leave()
        return budget.charge_value(value)


class _Namespace(Namespace):
    """Jinja's namespace, whose repr shows no contents: a namespace may contain itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


@pass_context
def _write(_: Context, value: Any) -> Any:
    """Charge a value that the template writes: {{ value }}."""
    budget = current_budget()
    size = budget.size(value)
    budget.charge(size)
    budget.step(size)
    return value


@pass_context
def _step(_: Context, value: Any, text: int = 0) -> Any:
    """Count a step in which the template writes `text` characters of its own source."""
    current_budget().step()
    current_budget().charge(text)
    return value


@pass_context
def _charge(_: Context, value: Any) -> Any:
    return current_budget().charge_value(value)


@pass_eval_context
def _concatenate(context: nodes.EvalContext, values: list[Any]) -> str:
    """a ~ b ~ c"""
    budget = current_budget()
    budget.expect(budget.size(values))
    return budget.charge_value((markup_join if context.autoescape else str_join)(values))


@pass_context
def _sum(
    context: Context, iterable: Any, attribute: str | int | None = None, start: Any = 0
) -> Any:
    """Jinja's filter `sum`. Each addition counts as a step, because items may be lists."""
    environment: Any = context.environment
    if attribute is not None:
        iterable = environment.call_filter(
            "map", iterable, kwargs={"attribute": attribute}, context=context
        )
    for item in iterable:
        start = environment.call_binop(context, "+", start, item)
    return start


def _limited(one: Callable[..., Any], growth: Callable[..., float] | None) -> Callable[..., Any]:
    """A filter or function that takes from the budget.

    growth: computes from the arguments how many bytes the result may have; None: not estimated.
    """
    # Jinja passes some filters the context or the environment, in front of the arguments.
    first = int(hasattr(one, "jinja_pass_arg"))

    @functools.wraps(one)  # copies the mark jinja_pass_arg too
    def limited(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        if growth is not None:
            args = (*args[:first], *map(as_list, args[first:]))
            budget.expect(growth(*args[first:], **kwargs))
        return budget.charge_value(one(*args, **kwargs))

    return limited


class _StepInserter(NodeTransformer):
    """Inserts steps into a syntax tree: into the bodies of loops and macros, and around expressions
    that make or compare values without a call.
    """

    def __init__(self, environment: LimitedEnvironment) -> None:
        self._environment = environment

    def _filtered(self, name: str, node: Any, *args: Any) -> Any:
        """The expression `node | name(args)`."""
        made = nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)
        return made.set_environment(self._environment)

    def _body(self, node: Any) -> Any:
        """A block whose body begins with a step."""
        text = sum(
            len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData)
        )
        node = self.generic_visit(node)
        nothing = nodes.Const(None, lineno=node.lineno)
        step = self._filtered(_STEP, nothing, nodes.Const(text, lineno=node.lineno))
        statement = nodes.ExprStmt(step, lineno=node.lineno)
        node.body.insert(0, statement.set_environment(self._environment))
        return node

    visit_Macro = visit_CallBlock = visit_FilterBlock = visit_AssignBlock = _body

    def visit_For(self, node: Any) -> Any:
        node = self._body(node)
        if node.test is not None:  # if the test is false, the body's step is not reached
            node.test = self._filtered(_STEP, node.test)
        return node

    def _value(self, node: Any) -> Any:
        return self._filtered(_CHARGE, self.generic_visit(node))

    visit_List = visit_Dict = _value

    def visit_Tuple(self, node: Any) -> Any:
        return self.generic_visit(node) if node.ctx != "load" else self._value(node)

    def visit_Getitem(self, node: Any) -> Any:
        return self._value(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)

    def visit_Concat(self, node: Any) -> Any:
        node = self.generic_visit(node)
        return self._filtered(_CONCATENATE, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: Any) -> Any:
        node = self.generic_visit(node)
        one = node.ops[0]
        with_constant = isinstance(one.expr, nodes.Const) and one.op not in ("in", "notin")
        quick = len(node.ops) == 1 and with_constant
        return node if quick else self._filtered(_STEP, node)
