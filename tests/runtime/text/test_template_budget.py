"""A chat template from a stranger cannot take much time or memory.

Templates within the limits are rendered as transformers renders them.
"""

from __future__ import annotations

import threading
import time
import tracemalloc

import pytest

from gptx.errors import ArtifactError
from gptx.text import template_budget
from gptx.text.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hello"}]
GROWING = (
    "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{step}{{% endfor %}}"
    "{{{{ ns.x{end} }}}}"
)


def render(source: str, messages: list[dict[str, str]] = MESSAGES) -> str:
    return ChatTemplate(source, {}).render(messages)


LARGE = {
    "a string times a number": "{{ 'a' * 10**9 }}",
    "a list times a number": "{{ ([0] * 10**9) | length }}",
    "a power": "{{ 10 ** (10 ** 8) > 1 }}",
    "a width": "{{ 'a' | center(10**9) }}",
    "a method's width": "{{ 'a'.rjust(10**9) }}",
    "an indentation": "{{ ('a\n' * 1000) | indent(10**8) }}",
    "%": "{{ '%1000000000d' % 1 }}",
    "%*": "{{ '%.*f' % (10**9, 1.5) }}",
    "%()": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "format": "{{ '%1000000000d' | format(1) }}",
    "braces": "{{ '{:1000000000}'.format(1) }}",
    "braces in braces": "{{ '{:{}}'.format(1, 10**9) }}",
    "a text again and again": "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "join": "{{ range(100000) | join('b' * 100000) }}",
    "an iterator's join": "{{ ('b' * 100000).join(range(100000) | map('string')) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "tojson": "{{ [1] | tojson(indent=10**9) }}",
    "lipsum": "{{ lipsum(10**7) }}",
    "to_bytes": "{{ (5).to_bytes(10**9, 'big') | length }}",
    "wordwrap": "{{ ('a' * 1000000) | wordwrap(1) }}",
    "sum of lists": "{{ ([[0] * 20] * 20000) | sum(start=[]) | length }}",
    "doubling +": GROWING.format(start="'a'", step="{% set ns.x = ns.x + ns.x %}", end=""),
    "doubling ~": GROWING.format(start="'a'", step="{% set ns.x = ns.x ~ ns.x %}", end=""),
    "doubling blocks": GROWING.format(
        start="'a'", step="{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}", end=""
    ),
    "squares": GROWING.format(start="3", step="{% set ns.x = ns.x * ns.x %}", end=" > 1"),
    "lists in lists": GROWING.format(start="[1]", step="{% set ns.x = [ns.x, ns.x] %}", end=""),
    "tuples in tuples": GROWING.format(
        start="1", step="{% set ns.x = (ns.x, ns.x) %}", end=" == 1"
    ),
    "objects in objects": GROWING.format(
        start="1", step="{% set ns.x = dict(a=ns.x, b=ns.x) %}", end=" | tojson"
    ),
    "arguments in arguments": "{% macro m(n) %}"
    "{{ m(n - 1, varargs, varargs) if n else varargs }}{% endmacro %}"
    "{{ m(60, 1) }}",
    "slices": "{% set b = 'x' * 10000000 %}"
    + "".join(f"{{% set a{i} = b[1:] %}}" for i in range(100)),
    "its own text": "{% for i in range(100000) %}" + "x" * 99_000 + "{% endfor %}",
    "a long template": "x" * 100_001,
}


@pytest.mark.parametrize("name", LARGE)
def test_memory_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "MEMORY", 16 * 2**20)  # smaller, for a quick test
    monkeypatch.setattr(template_budget, "VALUE", 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="the chat template was stopped: it (makes|has)"):
            render(LARGE[name])
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) if i < 0 %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% set x = range(100000) | sort %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
        "{{ m(60) }}",
        "{% set b, c = [[1] * 1000] * 100, [[1] * 1000] * 100 %}"
        + "{{ b == c }}{{ [2] in b }}" * 300,
    ],
)
def test_time_is_bounded_in_any_thread(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "SECONDS", 0.1)
    said: list[str] = []

    def rendered() -> None:
        with pytest.raises(ArtifactError) as error:
            render(source)
        said.append(f"{error.value} {time.thread_time():.0f}")

    thread = threading.Thread(target=rendered)
    thread.start()
    thread.join(60)
    assert said and "ran for more than" in said[0]
    assert int(said[0].split()[-1]) <= 5  # seconds; compiling a long template takes some of them


@pytest.mark.parametrize("comparison", ["b == c", "2 in b", "'x' not in 'y'", "0 < 1 < 2"])
def test_a_comparison_that_may_take_long_is_a_step(
    comparison: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(template_budget.Budget, "step", lambda self, size=0: steps.append(size))
    counts = []
    for n in (1, 11):
        steps.clear()
        render("{% set b = [1] %}{% set c = [1] %}" + f"{{% if {comparison} %}}{{% endif %}}" * n)
        counts.append(len(steps))
    assert counts[1] - counts[0] >= 10


@pytest.mark.parametrize(
    "source",
    [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ " + "(" * 10000 + "1" + ")" * 10000 + " }}",
        "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    ],
)
def test_depth_is_bounded(source: str) -> None:
    with pytest.raises(ArtifactError, match="call themselves more than 100 times|nests too deep"):
        render(source)


def test_a_namespace_that_holds_itself() -> None:
    assert "Namespace" in render("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}")


def test_each_rendering_has_a_budget_of_its_own() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content * m.n }}{% endfor %}", {})
    with pytest.raises(ArtifactError, match="was stopped"):
        template.render([{"content": "x", "n": 10**9}])
    assert template.render([{"content": "x", "n": 3}]) == "xxx"


CONSTRUCTS = {
    "macros": "{% macro m(x, y=[1]) %}"
    "{{ x }}{{ y }}{{ caller() if caller else varargs }}{% endmacro %}"
    "{{ m('a', [2, 3], 4) }}{% call m((1, 2)) %}inner{% endcall %}",
    "recursion": "{% for x in [[1, [2]], [3]] recursive %}"
    "{{ x if x is number else loop(x) }};{% endfor %}",
    "a deep macro": "{% macro m(n) %}{{ n }}{{ m(n - 1) if n else '' }}{% endmacro %}{{ m(60) }}",
    "operators": "{{ 1 + 2 * 3 ** 2 % 5 // 2 - 1 / 4 }}"
    "{{ 'a' * 3 + 'b' ~ 1 ~ none ~ [1] }}{{ [1] + [2] * 2 }}",
    "comparisons": "{{ 1 < 2 < 3 }}{{ 'role' in messages[0] }}"
    "{{ messages == messages }}{{ 1 not in (2, 3) }}",
    "unpacking": "{% set a, b = 1, (2, 3) %}"
    "{% for k, v in {'x': 1, 'y': b}.items() %}{{ k }}{{ v }}{{ a }}{% endfor %}",
    "slices": "{{ messages[1:][::-1] }}{{ messages[0].content[2:-1] }}"
    "{% set loop_messages = messages[:2] %}{{ loop_messages | length }}",
    "filters": "{{ [1, 2] | sum }}{{ [{'a': 2}, {'a': 3}] | sum(attribute='a') }}"
    "{{ [[1], [2]] | sum(start=[]) }}"
    "{{ messages | map(attribute='content') | join(', ') }}"
    "{{ messages | selectattr('role', 'eq', 'user') | list | length }}"
    "{{ {'b': 1, 'a': [2]} | dictsort }}{{ messages | groupby('role') | list | length }}"
    "{{ 2.567 | round(1) }}{{ 'a\nb' | indent(4) }}{{ ['x'] | batch(3, '-') | list }}"
    "{{ '%s-%5.1f' | format('é', 2) }}"
    "{{ [3, 1] | sort | first }}",
    "methods": "{{ 'a b'.split() }}{{ 'x'.center(7) }}{{ '{:>5}|{a}'.format(1, a=[2]) }}"
    "{{ '-'.join(['a', 'b']) }}{{ 'aXb'.replace('X', '::') }}{{ ' x '.strip() | upper }}"
    "{{ '%(a)s %05d' % {'a': 1} if 0 else '%s %05d' % ('a', 3) }}",
    "blocks": "{% set x %}{{ messages[0].content }}!{% endset %}"
    "{% filter upper %}{{ x }}{% endfilter %}"
    "{% block b %}block{% endblock %}{{ self.b() }}{% with y = 3 %}{{ y }}{% endwith %}",
    "escaping": "{% autoescape true %}"
    "{{ '<' ~ '>' }}{{ messages[1].content | safe ~ '<' }}{% endautoescape %}",
    "json": "{{ messages | tojson(indent=4) }}{{ {'a': [1, 2, {'b': none}]} | tojson }}",
}


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_constructs_are_rendered_as_hugging_face_does(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        {"role": "user", "content": "Why & how?"},
        {"role": "assistant", "content": "é <b>"},
    ] * 2
    theirs, _ = render_jinja_template(conversations=[messages], chat_template=CONSTRUCTS[name])
    assert (
        ChatTemplate(CONSTRUCTS[name], {}).render(messages, add_generation_prompt=False)
        == theirs[0]
    )


def test_a_thousand_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that collects the conversation in a variable takes the most memory."""
    monkeypatch.setattr(template_budget, "SECONDS", 2.0)
    messages = [
        {"role": "user" if n % 2 else "assistant", "content": "word " * 200} for n in range(1000)
    ]
    source = (
        "{% set ns = namespace(text='') %}"
        "{% for m in messages %}{% set ns.text = ns.text + m.content %}{% endfor %}"
    )
    assert render(source + "{{ ns.text }}", messages) == "word " * 200_000
