"""Texts under a grammar: what may come next, and what a grammar that cannot be obeyed says."""

from __future__ import annotations

import json
import re
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from builders.tokenizers_of_all_kinds import byte_level, llama, word_piece
from gptx.engine import structure
from gptx.engine.big_stack import BigStack
from gptx.engine.grammar import Grammar, read_grammar
from gptx.engine.matcher import Matcher
from gptx.engine.structure import GrammarCompiler
from gptx.errors import GptxError, GptxWarning, UsageError
from gptx.model import DEFAULT_MODEL
from gptx.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")

END = 0  # <|endoftext|> of byte_level


@cache
def tokenizer(make: Callable[[], tokenizers.Tokenizer] = byte_level) -> Tokenizer:
    return Tokenizer(make())


@cache
def compiler(make: Callable[[], tokenizers.Tokenizer] = byte_level) -> GrammarCompiler:
    known = tokenizer(make)
    return GrammarCompiler(known, vocab_size=known.vocab_size, end_tokens=[END])


def begin(grammar: Grammar | Any, stop_tokens: tuple[int, ...] = ()) -> Matcher:
    found = grammar if isinstance(grammar, Grammar) else read_grammar(json_schema=grammar)
    assert found is not None
    return compiler().compile(found).matcher(stop_tokens)


def allowed(matcher: Matcher, vocab_size: int | None = None) -> set[int]:
    """The tokens in the mask."""
    size = tokenizer().vocab_size if vocab_size is None else vocab_size
    mask = np.zeros(-(-size // 32), np.uint32)
    matcher.allowed(mask)
    return {token for token in range(32 * len(mask)) if mask[token // 32] >> token % 32 & 1}


def accepts(matcher: Matcher, text: str) -> bool:
    """Whether a text follows the grammar, as a whole."""
    return all(map(matcher.accept, tokenizer().encode(text))) and matcher.may_end


def sample(matcher: Matcher, seed: int, known: Tokenizer | None = None, longest: int = 400) -> str:
    """A text from random logits under the mask. Tokens that close something are likelier."""
    known = known or tokenizer()
    texts = known.token_bytes()
    raised = np.array([5.0 * any(sign in text for sign in b'"}],') for text in texts], np.float32)
    draw, tokens = np.random.default_rng(seed), []
    while not matcher.is_finished and len(tokens) < longest:
        logits = draw.gumbel(size=len(texts)).astype(np.float32) + raised
        matcher.apply(logits)
        tokens.append(int(logits.argmax()))
        assert matcher.accept(tokens[-1])
    assume(matcher.is_finished)
    return b"".join(texts[token] for token in tokens if token not in matcher.end_tokens).decode()


NAMES = st.sampled_from(["a", "b", "name", 'q"\\', "é", "the cat"])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-30, 30),
    st.floats(-9, 9).map(lambda x: round(x, 2)),
    NAMES,
)
LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-20, 20),
        st.integers(0, 30),
    ),
    st.builds(
        lambda low, more: {"type": "number", "exclusiveMinimum": low, "maximum": low + more},
        st.integers(-5, 5),
        st.integers(1, 5),
    ),
    st.just({"type": "integer", "multipleOf": 7}),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.just({"type": "string", "pattern": "^[a-c]{1,3}$"}),
    st.just({"type": "string", "format": "date"}),
    st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=3)),
    st.builds(lambda value: {"const": value}, VALUES),
)
SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda item, low, more: {
                "type": "array",
                "items": item,
                "minItems": low,
                "maxItems": low + more,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(
            lambda properties, required, more: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties.keys() & required),
                "additionalProperties": more,
            },
            st.dictionaries(NAMES, inner, max_size=3),
            st.sets(NAMES),
            st.booleans() | inner,
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, st.integers(0, 1 << 30))
def test_a_text_of_random_logits_is_valid(schema: Any, seed: int) -> None:
    text = sample(begin(schema), seed)
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, VALUES | st.lists(VALUES, max_size=3) | st.dictionaries(NAMES, VALUES, max_size=3))
def test_an_invalid_instance_is_rejected(schema: Any, instance: Any) -> None:
    assume(not jsonschema.Draft202012Validator(schema).is_valid(instance))
    assert not accepts(begin(schema), json.dumps(instance, ensure_ascii=False))


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({"type": "object"}, {"z": [1, {"a": None}], "a": "x"}),
        ({"properties": {"b": {}, "a": {}}}, {"b": -1.5e-7, "a": True}),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, [1]),
        (
            {"$ref": "#/$defs/tree", "$defs": {"tree": {"items": {"$ref": "#/$defs/tree"}}}},
            [[], [[]]],
        ),
        ({"allOf": [{"minLength": 2}, {"maxLength": 3}], "type": "string"}, "é😀"),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, None),
        ({"items": {"uniqueItems": False, "type": "array"}}, [[1, 1]]),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1}, 2),
        (True, {"any": ["thing"]}),
    ],
)
def test_a_valid_instance_is_accepted(schema: Any, instance: Any) -> None:
    assert accepts(begin(schema), json.dumps(instance, ensure_ascii=False))


@pytest.mark.parametrize("bound", [2**53 + 1, 2**62 - 1, 2**63 - 1, 9223372036854776000])
def test_bounds_that_float64_does_not_hold(bound: int) -> None:
    near = [bound + more for more in (-5000, -1024, -512, -2, -1, 0, 1, 2, 512, 1024)]
    for least, most in ((0, bound), (-bound, 0)):
        schema = {"type": "integer", "minimum": least, "maximum": most}
        if bound >= 2**63 - 1 and least:
            with pytest.raises(UsageError, match="integer range"):
                begin(schema)
            continue
        accepted = [
            value for value in near if accepts(begin(schema), str(value if most else -value))
        ]
        assert accepted and max(accepted) <= bound


def test_a_name_cannot_be_written_in_another_way() -> None:
    schema = {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    assert not accepts(begin({"type": "object", **schema}), r'{"\u0061": "x"}')


@pytest.mark.parametrize(
    "pattern", ["[0-9]{2,4}", "(ab|a)b*c?", r"[\d_]+@[a-z]+\.(de|com)", "x?", "a/b\n"]
)
def test_a_regex_must_match_the_whole_text(pattern: str) -> None:
    @settings(max_examples=50, deadline=None)
    @given(st.from_regex(pattern, fullmatch=True) | st.from_regex(pattern) | st.text("ab0./@\nde"))
    def holds(text: str) -> None:
        assume(len(text) < 60)
        expected = re.fullmatch(pattern, text) is not None
        assert accepts(begin(Grammar("regex", pattern)), text) == expected

    holds()


def test_a_lark_grammar() -> None:
    grammar = Grammar(
        "lark", 'start: "say " WORD ("," WORD)* " " %json {"type": "null"}\nWORD: /[a-z]+/'
    )
    assert accepts(begin(grammar), "say cat,dog null")
    assert not accepts(begin(grammar), "say cat, null")


@settings(max_examples=30, deadline=None)
@given(SCHEMAS, st.integers(0, 1 << 30), st.integers(0, 6))
def test_the_mask_is_what_the_grammar_accepts(schema: Any, seed: int, steps: int) -> None:
    matcher = begin(schema)
    walk(matcher, seed, steps)
    accepted = {token for token in range(tokenizer().vocab_size) if matcher.copy().accept(token)}
    if forced := matcher.forced():
        assert allowed(matcher) == {forced[0]} <= accepted
    else:
        assert allowed(matcher) <= accepted
        # Where forced bytes come next, llguidance wants the tokenizer's own tokens.
        assert allowed(matcher) == accepted or len(allowed(matcher)) < 20


def walk(matcher: Matcher, seed: int, steps: int) -> list[int]:
    """Append allowed tokens, up to `steps`."""
    draw, tokens = np.random.default_rng(seed), []
    for _ in range(steps):
        if matcher.is_finished:
            break
        tokens.append(int(draw.choice(sorted(allowed(matcher)))))
        assert matcher.accept(tokens[-1])
    return tokens


@settings(max_examples=60, deadline=None)
@given(SCHEMAS, st.integers(0, 1 << 30), st.integers(0, 12), st.integers(0, 12))
def test_rollback_is_as_if_nothing_had_been(schema: Any, seed: int, steps: int, back: int) -> None:
    matcher = begin(schema)
    tokens = walk(matcher, seed, steps)
    kept = tokens[: max(len(tokens) - back, 0)]
    before, other = matcher.copy(), begin(schema)
    matcher.rollback(len(tokens) - len(kept))
    assert all(map(other.accept, kept))
    assert state(matcher) == state(other)
    assert walk(matcher, seed, 3) == walk(other, seed, 3)
    assert before.is_finished or state(before) is not None  # the copy was left alone
    again = begin(schema)
    assert all(map(again.accept, tokens))
    assert state(before) == state(again)


def state(matcher: Matcher) -> Any:
    return matcher.may_end, matcher.is_finished, matcher.forced(), allowed(matcher)


def test_forced_tokens_are_what_has_no_choice() -> None:
    schema = {
        "type": "object",
        "properties": {"the cat": {"enum": ["sat"]}},
        "required": ["the cat"],
    }
    matcher = begin({**schema, "additionalProperties": False})
    tokens = []
    while forced := matcher.forced():
        tokens += forced
        assert all(map(matcher.accept, forced))
    assert tokenizer().decode(tokens) == '{"the cat":'  # a space or none may follow
    assert len(allowed(matcher)) > 1


def test_end_tokens_come_where_the_text_is_complete() -> None:
    two = tuple(tokenizer().encode("2"))
    matcher = begin(Grammar("regex", "1[2-9]*"), stop_tokens=two)
    assert not matcher.accept(END) and not matcher.accept(*two)
    assert matcher.accept(*tokenizer().encode("1"))
    assert matcher.may_end and not matcher.is_finished
    assert {END, *two} < allowed(matcher)
    assert matcher.accept(*two) and matcher.is_finished
    assert allowed(matcher) == set() and matcher.forced() == []
    assert not matcher.accept(END) and not matcher.accept(*tokenizer().encode("3"))
    matcher.rollback(1)
    assert matcher.may_end and not matcher.is_finished
    assert matcher.accept(*tokenizer().encode("3")) and matcher.accept(END)
    matcher.rollback(3)
    assert not matcher.may_end
    with pytest.raises(UsageError, match="rollback got 1, expected 0 to 0"):
        matcher.rollback(1)


def test_a_text_that_cannot_go_on_is_finished() -> None:
    matcher = begin({"const": 5})
    assert matcher.accept(*tokenizer().encode("5"))
    assert matcher.is_finished and matcher.may_end and allowed(matcher) == {END}


def test_a_padded_vocabulary() -> None:
    size = tokenizer().vocab_size + 70
    end = size - 1
    padded = GrammarCompiler(tokenizer(), vocab_size=size, end_tokens=[end, END])
    matcher = padded.compile(Grammar("regex", "[a-z]*")).matcher()
    beyond = set(range(tokenizer().vocab_size, size))
    assert allowed(matcher, size) & beyond == {end}
    assert not matcher.accept(tokenizer().vocab_size)  # llguidance's own end token
    logits = np.zeros(size, np.float32)
    matcher.apply(logits)
    assert set(np.flatnonzero(logits == 0)) == allowed(matcher, size)
    assert matcher.accept(end) and matcher.is_finished


def test_a_model_without_end_tokens() -> None:
    endless = GrammarCompiler(tokenizer(), vocab_size=tokenizer().vocab_size)
    matcher = endless.compile(Grammar("regex", "12?")).matcher()
    assert matcher.accept(*tokenizer().encode("1")) and matcher.may_end
    assert allowed(matcher) == set(tokenizer().encode("2"))
    assert matcher.accept(*tokenizer().encode("2")) and matcher.is_finished
    assert allowed(matcher) == set()


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_apply_forbids_all_other_tokens(kind: type) -> None:
    matcher = begin({"type": "integer"})
    logits = np.linspace(-3, 3, tokenizer().vocab_size).astype(kind)
    kept = logits.copy()
    matcher.apply(logits)
    may = sorted(allowed(matcher))
    assert np.array_equal(logits[may], kept[may])
    assert np.isneginf(np.delete(logits, may)).all()


def default_model() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(DEFAULT_MODEL / "tokenizer.json"))


@pytest.mark.parametrize("make", [byte_level, llama, default_model])
def test_tokenizers_of_all_kinds(make: Callable[[], tokenizers.Tokenizer]) -> None:
    schema = {
        "type": "object",
        "properties": {"the name": {"type": "string", "maxLength": 8}, "é": {"enum": ["ü", 1]}},
        "required": ["the name", "é"],
        "additionalProperties": False,
    }
    grammar = read_grammar(schema)
    assert grammar is not None
    compiled = compiler(make).compile(grammar)
    for seed in range(5):
        found = json.loads(sample(compiled.matcher(), seed, tokenizer(make)))
        jsonschema.validate(found, schema)


def test_a_tokenizer_whose_tokens_have_no_text_of_their_own() -> None:
    with pytest.raises(UsageError, match="tokenizer.json has WordPiece decoder"):
        compiler(word_piece).compile(Grammar("regex", "a"))


def test_text_that_the_model_has_no_tokens_for() -> None:
    letters = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    letters.decoder = tokenizers.decoders.Fuse()
    few = GrammarCompiler(Tokenizer(letters), vocab_size=2)
    assert few.compile(Grammar("regex", "a+b")).matcher().accept(0)
    for regex in ("c", "ac"):
        with pytest.raises(UsageError, match="regex: goes on with text that the model has no tok"):
            few.compile(Grammar("regex", regex))


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (False, "JSON schema: false: no text is valid"),
        ({"type": "string", "format": "phone"}, "JSON schema: Unknown format: phone"),
        ({"type": "string", "format": "unknown"}, "no format of JSON Schema"),
        ({"not": {}}, "Unimplemented keys"),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "if": {}}, "Unimplemented keys"),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "dependentRequired": {}},
            "Unimplemented keys",
        ),
        ({"type": "strnig"}, "Invalid type: strnig"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"$ref": "https://example.com/schema"}, r"\$ref in # is 'https://example.com/schema'"),
        ({"$ref": "#/$defs/none"}, "expected a place in the schema"),
        ({"$ref": "#"}, "no tokens for"),
        ({"const": 2**53 + 1}, "const in # has 9007199254740993, which llguidance would round"),
        ({"const": {"a": [1e30]}}, "const in # has 1e\\+30, which llguidance would round"),
        ({"maximum": 10**400}, "JSON schema: "),
        ({"items": {"enum": ["a", [1, {"b": -(2**60)}]]}}, "enum in #/items has -115"),
        ({"multipleOf": 123457}, "multipleOf in # is 123457, which takes too long"),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 9.91}]}, "multipleOf"),
        ({"pattern": "^[a-z&&[^b]]$"}, "has && within"),
        ({"patternProperties": {"[[]": {}}}, "has \\[ within"),
        ({"pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": r"^a\x01b$"}, "give the schema .x-guidance"),
        ({"type": "string", "pattern": r"^[\x01-\x05]$"}, "give the schema .x-guidance"),
        ({"type": "string", "pattern": r"^[\x01\x02]$"}, "give the schema .x-guidance"),
        ({"enum": ["a", {"b": ["\x01"]}]}, "enum in # has a control character"),
        ({"x-guidance": {"lenient": True}}, "other than lenient"),
        ({"x-guidance": {"lazy": True}}, "unknown field"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"const": 2**53 + 1}}}, r"const in #/\$defs/a"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(schema: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        begin(schema)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "notes"),
    [
        (
            {"type": "integer", "minimun": 3},
            ["minimun in #: unknown to JSON Schema, without effect"],
        ),
        ({"typ": "object", "nullable": True}, ["typ, nullable in #: unknown to JSON Schema,"]),
        (
            {"$ref": "#/components/a", "components": {"a": {"items": {"titel": "x"}}}},
            ["titel in #/components/a/items: unknown"],
        ),
        ({"items": {"x-guidance": {}}}, ["x-guidance in #/items: unknown"]),
        ({"type": "object", "minProperties": 2}, ["minProperties in #: a name that the schema"]),
        (
            {"type": "string", "pattern": r"^a\x01?[\x00-\x05]?[^\x01]$"},
            ["the pattern '^a\\\\x01?[\\\\x00-\\\\x05]?[^\\\\x01]$' in # has a control character"],
        ),
        ({"type": "string", "pattern": r"^[\x00-\x7f][^\x01]\n?$"}, []),
        ({"title": "x", "default": 1, "x-order": 2, "$defs": {"a": {"foo": 1}}}, []),
        ({"properties": {"foo": {}}, "const": {"bar": 1}, "examples": [{"baz": 1}]}, []),
    ],
)
def test_what_has_no_effect_is_said(schema: Any, notes: list[str]) -> None:
    grammar = read_grammar(json_schema=schema)
    assert grammar is not None
    fresh = GrammarCompiler(tokenizer(), vocab_size=tokenizer().vocab_size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = fresh.compile(grammar)
        fresh.compile(grammar)
    assert [str(one.message) for one in caught] == [f"JSON schema: {one}" for one in compiled.notes]
    assert all(one.category is GptxWarning and one.filename == __file__ for one in caught)
    assert len(compiled.notes) == len(notes)
    assert all(map(str.startswith, compiled.notes, notes))


@pytest.mark.parametrize(
    ("pattern", "texts", "others"),
    [
        (r"^a(\x01|c)b$", ["acb"], ["ab"]),
        (r"^a(\u0001x|c)b$", ["acb"], ["ab", "axb"]),
        (r"^a\x01?b$", ["ab"], ["aab"]),
        (r"^a([\x01]|\x7f|d)*b$", ["ab", "addb"], ["acb"]),
        (r"^[\x01-\x05c]$", ["c"], [""]),
        (r"^[]a]$", ["a", "]"], ["b"]),
        (r"^(a\x01|[^\x02])$", ["a", "b"], [""]),
        (r"^a\\x01b$", [r"a\\x01b"], ["ab"]),
    ],
)
@pytest.mark.filterwarnings("ignore::gptx.GptxWarning")
def test_patterns_leave_texts_with_control_characters_out(
    pattern: str, texts: list[str], others: list[str]
) -> None:
    for schema, form in (
        ({"type": "string", "pattern": pattern}, '"{}"'),
        (
            {"patternProperties": {pattern: {"const": 1}}, "additionalProperties": False},
            '{{"{}":1}}',
        ),
    ):
        for text in texts:
            assert accepts(begin({"type": "object"} | schema), form.format(text)), schema
        for text in others:
            assert not accepts(begin({"type": "object"} | schema), form.format(text)), schema


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("start: r\nr[temperature=0.5]: /.*/", "temperature=, which gptx does not obey"),
        ("start: r\nr[max_tokens=5]: /.*/", "max_tokens=, which"),
        ('start: r "x"\nr[lazy, stop="x"]: /.*/', "stop=, which"),
        ('%llguidance {"no_forcin": true}\nstart: "x"', "an unknown option no_forcin"),
        ('start: %json {"not": {}}', "Unimplemented keys"),
        ('start: %json {"const": 1e', "Lark grammar: JSON that cannot be read"),
        ('start: %json {"const": 9007199254740993}', "would round"),
        ("start: word", 'unknown name: "word"'),
        ('start: "a', "Lark grammar: "),
        ("", "Lark grammar: no start rule found"),
        ("start: <|nothing|>", "unknown special token"),
        ("start: a\na: a", "no tokens for"),
        ('start: a\na: "x" a', "Lark grammar: .*Too many items"),
        ("start: <|endoftext|> /a/", "names a token that ends the text: leave it out"),
    ],
)
def test_lark_grammars_that_are_refused(source: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        begin(Grammar("lark", source))


@pytest.mark.parametrize(
    "source",
    [
        'start: "temperature=1" // max_tokens=5\n',
        "# stop=5\nstart: /stop=[0-9]/\n",
        'start[capture="max"]: %json {"const": "temperature="}',
    ],
)
def test_texts_in_a_lark_grammar_are_no_attributes(source: str) -> None:
    assert begin(Grammar("lark", source)).may_end is False


@pytest.mark.parametrize("regex", ["(", "a{2,1}", r"(a)\1", r"\bword", "(" * 2000 + ")" * 2000])
def test_regexes_that_are_refused(regex: str) -> None:
    with pytest.raises(UsageError, match="regex: ") as caught:
        begin(Grammar("regex", regex))
    assert len(str(caught.value)) < 400


def chain(length: int) -> Any:
    """A schema whose definitions refer to each other, one to the next."""
    inner = {f"d{at}": {"items": {"$ref": f"#/$defs/d{at + 1}"}} for at in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**inner, f"d{length}": {"type": "null"}}}


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json_schema", json.dumps(chain(3000))),
        Grammar(
            "lark", "".join(f"r{at}: r{at + 1}\n" for at in range(4500)) + 'start: r0\nr4500: "a"'
        ),
    ],
    ids=["schema", "lark"],
)
def test_long_chains_of_rules_do_not_end_the_process(grammar: Grammar) -> None:
    sizes = []

    def work() -> None:
        sizes.append(len(allowed(begin(grammar))))

    before = threading.stack_size(256 * 1024)  # as other systems' threads have, or less
    try:
        thread = threading.Thread(target=work)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert sizes[0] > 0


def test_a_grammar_that_is_too_long() -> None:
    with pytest.raises(UsageError, match="JSON schema: has 300,0.. characters, expected up to 262"):
        begin({"const": "x" * 300_000})


def test_a_grammar_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "MOST_SECONDS", 0.01)
    monkeypatch.setattr(BigStack, "run", lambda *_: Future())  # which never ends
    with pytest.raises(UsageError, match="regex: takes more than 0.01 s to compile"):
        begin(Grammar("regex", "a slow one"))


@pytest.mark.parametrize("regex", ["a{1000000}", "((a{1000}){1000}){1000}"])
def test_a_grammar_that_is_too_complex(regex: str) -> None:
    with pytest.raises(UsageError, match="regex: lexer error: too many expressions"):
        begin(Grammar("regex", regex))


def test_a_grammar_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "KEPT", 2)
    fresh = GrammarCompiler(tokenizer(), vocab_size=tokenizer().vocab_size)
    a, b, c = (Grammar("regex", letter) for letter in "abc")
    first, second = fresh.compile(a), fresh.compile(b)
    assert fresh.compile(a) is first
    fresh.compile(c)  # b was used longest ago
    assert fresh.compile(a) is first
    assert fresh.compile(b) is not second


def test_a_grammar_that_failed_is_compiled_again() -> None:
    fresh = GrammarCompiler(tokenizer(), vocab_size=tokenizer().vocab_size)
    grammar = Grammar("regex", "b|a{1000000}")
    try:
        compiled = fresh.compile(grammar)
    except UsageError:
        pytest.skip("llguidance refuses this grammar at once")
    matcher = compiled.matcher()
    with pytest.raises(UsageError, match="too many expressions"):
        for _ in range(100):
            assert matcher.accept(*tokenizer().encode("a"))
            allowed(matcher)
    assert compiled.failed
    assert fresh.compile(grammar) is not compiled


def test_matchers_of_one_grammar_in_many_threads() -> None:
    schema = {"type": "array", "items": {"type": "integer", "maximum": 500}, "maxItems": 30}
    compiled = compiler().compile(Grammar("json_schema", json.dumps(schema)))
    texts: list[str] = []

    def work(seed: int) -> None:
        texts.append(sample(compiled.matcher(), seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 8
    for text in texts:
        jsonschema.validate(json.loads(text), schema)


def test_without_llguidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    fresh = GrammarCompiler(tokenizer(), vocab_size=tokenizer().vocab_size)
    with pytest.raises(
        GptxError, match=r"llguidance, which is not installed: pip install .*structured"
    ):
        fresh.compile(Grammar("regex", "a"))
