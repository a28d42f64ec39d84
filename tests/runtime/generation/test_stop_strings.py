"""Stop strings: found where transformers' StopStringCriteria finds them, and cut from the text."""

from __future__ import annotations

import time
from functools import cache

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers

from builders.tiny_artifact import byte_tokenizer
from gptx.generation.transcript import Transcript
from gptx.text.detokenizer import Detokenizer
from gptx.text.stop_strings import StopSet, StopStrings
from gptx.text.tokenizer import Tokenizer

SPECIAL = ["<|end|>", "<|turn|>", "<x>"]  # <|end|> is token 0


def byte_level() -> tokenizers.Tokenizer:
    inner = byte_tokenizer()
    inner.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL[1:]])
    return inner


def byte_fallback() -> tokenizers.Tokenizer:
    """A tokenizer like Llama's: a line end is the byte token <0x0A>."""
    words = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdeft",
        "▁a",
        "ab",
        "▁the",
        "cat",
        "▁c",
    ]
    inner = tokenizers.Tokenizer(
        models.BPE(
            {word: n for n, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True
        )
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return inner


@cache
def pair(kind: str) -> tuple[Tokenizer, transformers.PreTrainedTokenizerFast, list[int]]:
    """Our tokenizer, transformers' tokenizer, and the ids of tokens that are whole characters."""
    inner = {"byte-level": byte_level, "byte-fallback": byte_fallback}[kind]()
    ours = Tokenizer(inner)
    whole = [
        n
        for n in range(ours.vocab_size)
        if "\ufffd" not in ours.decode([n], skip_special_tokens=False)
    ]
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=False
    )
    return ours, theirs, whole


def first_stop(
    theirs: transformers.PreTrainedTokenizerFast,
    stops: list[str],
    prompt: list[int],
    ids: list[int],
) -> int:
    """The number of new tokens that transformers would write."""
    criterion = transformers.StopStringCriteria(theirs, stops)
    for n in range(1, len(ids) + 1):
        if criterion(torch.tensor([prompt + ids[:n]]), torch.empty(0))[0]:
            return n
    return len(ids)


def transcribe(
    tokenizer: Tokenizer,
    stops: list[str],
    prompt: list[int],
    ids: list[int],
    *,
    end: int | None = None,
) -> tuple[Transcript, list[str]]:
    """A Transcript that has read `ids` until it ended, and the pieces that it showed.

    end: a token that ends the text.
    """
    transcript = Transcript(
        Detokenizer(tokenizer, prompt),
        StopStrings(StopSet(stops), tokenizer, prompt),
        len(prompt),
        None,
    )
    pieces = []
    for n, token in enumerate(ids, 1):
        finish = "stop" if token == end else "length" if n == len(ids) else None
        pieces.append(transcript.push(token, finish))
        if transcript.finish:
            break
    return transcript, pieces


def shown(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> str:
    """The text of all new tokens behind the prompt."""
    detokenizer = Detokenizer(tokenizer, prompt)
    return "".join([*(detokenizer.push(token) for token in ids), detokenizer.flush()])


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_as_transformers(kind: str, data: st.DataObject) -> None:
    """Stop strings inside a token, and across tokens, special tokens and the prompt's end."""
    ours, theirs, whole = pair(kind)
    few = st.sampled_from([*whole[-12:], *(theirs.convert_tokens_to_ids(text) for text in SPECIAL)])
    prompt = data.draw(st.lists(few, min_size=1, max_size=6))
    ids = data.draw(st.lists(few, min_size=1, max_size=14))
    text = ours.decode(prompt + ids, skip_special_tokens=False)
    cuts = st.tuples(st.integers(0, len(text)), st.integers(1, 14))
    pieces = cuts.map(lambda cut: text[cut[0] : cut[0] + cut[1]]).filter(bool)
    stops = data.draw(
        st.lists(
            pieces | st.sampled_from([*SPECIAL, "t<|turn|>", "ca", "never seen"]),
            min_size=1,
            max_size=4,
        )
    )
    stops = [stop for stop in stops if stop.isascii()] or ["<x>"]
    try:
        expected = first_stop(theirs, stops, prompt, ids)
    except ValueError:  # transformers refuses stop strings that no token ends with
        expected = len(ids)
    transcript, pieces = transcribe(ours, stops, prompt, ids)
    assert transcript.token_ids == ids[:expected]
    completion = transcript.completion()
    assert completion.text == "".join(pieces)
    # cut before a stop string that reaches into the last token; special tokens are no text
    whole_text = shown(ours, prompt, ids[:expected])
    assert completion.text is not None and whole_text.startswith(completion.text)
    found = transcript.stop_strings is not None and transcript.stop_strings.found
    assert completion.finish_reason == ("stop" if found else "length")
    if not found:
        assert completion.text == whole_text
        assert not any(stop in ours.decode(ids, skip_special_tokens=False) for stop in stops)


def written(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, without spaces that Llama's tokenizer adds.

    It adds them at the beginning and behind special tokens.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids if " " in text else [token for token in ids if tokenizer.token(token) != "▁"]


def case(
    kind: str, text: str, stop: str | list[str], prompt: str = "the"
) -> tuple[str | None, int, str | None]:
    """Text, tokens and finish reason if a model writes `text`."""
    tokenizer = pair(kind)[0]
    ids = written(tokenizer, text)
    stops = [stop] if isinstance(stop, str) else stop
    transcript, _ = transcribe(tokenizer, stops, tokenizer.encode(prompt), ids)
    completion = transcript.completion()
    return completion.text, len(completion.token_ids), completion.finish_reason


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("ab<|turn|>cd", "<|turn|>", "ab"),
        ("ab<|turn|>cd", "b<|turn|>", "a"),
        ("ab<|turn|>cd", "b<|turn|>c", "a"),
        ("ab<|turn|>cd", "turn", "ab"),
        ("ab<|turn|><x>cd", "|><x", "ab"),
        # "bc" is in the text without special tokens, but not in what the model wrote.
        ("ab<|turn|>cd", "bc", "abcd"),
        ("a<x>b<x>c", ["<x>b<x>", "b<x>c"], "a"),
        ("abcabd", "abd", "abc"),
        ("aaab", "aab", "a"),
        ("ab\ncd", "\n", "ab"),
        ("ab\n\ncd", "\n\n", "ab"),
        ("aéb", "é", "a"),
        ("aéb中c", "b中", "aé"),
        ("a🌍b", "🌍", "a"),
        ("a🌍b", "\u00f0", "a🌍b"),
        ("abcd", ["cd", "bcd", "d"], "a"),  # of those complete at once the longest
        ("abcd", ["bcd", "bc"], "a"),
        ("abcd", "never", "abcd"),
    ],
)
def test_text_is_cut_before_the_stop_string(
    kind: str, text: str, stop: str | list[str], expected: str
) -> None:
    found, _, why = case(kind, text, stop)
    assert (found, why) == (expected, "length" if expected == text or stop == "bc" else "stop")


@pytest.mark.parametrize(
    ("text", "stop", "n_tokens"), [("a\nb", "\n", 2), ("aéb", "é", 3), ("\n\n", "\n", 1)]
)
def test_a_stop_string_of_bytes_ends_the_text_at_once(text: str, stop: str, n_tokens: int) -> None:
    """Llama's line end is a byte token; how byte tokens decode is known only after the last in a
    row.

    (transformers looks at each token alone, and never finds an é of two bytes.)
    """
    tokenizer = pair("byte-fallback")[0]
    transcript, _ = transcribe(tokenizer, [stop], tokenizer.encode("ab"), written(tokenizer, text))
    assert (len(transcript.token_ids), transcript.finish) == (n_tokens, "stop")


@pytest.mark.parametrize(
    ("prompt", "text", "stop", "expected"),
    [
        ("the c", "at sat", "cat", ("", 1)),
        ("ab<x>", "cd", "<x>c", ("", 1)),
        ("ab", "cd", "ab", ("cd", 2)),  # what the prompt alone holds stops nothing
        ("abab", "ab", "ababab", ("", 2)),
    ],
)
def test_a_stop_string_may_begin_in_the_prompt(
    prompt: str, text: str, stop: str, expected: tuple[str, int]
) -> None:
    ours, theirs, _ = pair("byte-level")
    found, n_tokens, _ = case("byte-level", text, stop, prompt)
    assert (found, n_tokens) == expected
    assert n_tokens == first_stop(theirs, [stop], ours.encode(prompt), ours.encode(text))


def test_the_token_that_ends_a_text_may_complete_a_stop_string() -> None:
    tokenizer = pair("byte-level")[0]
    ids = tokenizer.encode("abc<|end|>")
    for stops, text in ((["c<|end|>"], "ab"), (["<|end|>"], "abc"), (["b<|end|>"], "abc")):
        transcript, _ = transcribe(tokenizer, stops, [40], ids, end=0)
        assert (transcript.completion().text, transcript.finish) == (text, "stop")


@settings(deadline=None, max_examples=150)
@given(
    text=st.text(alphabet="abcé\n🌍", max_size=14),
    stops=st.lists(st.text(alphabet="abcé\n🌍", min_size=1, max_size=4), min_size=1, max_size=4),
)
@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_text_is_what_a_reader_of_characters_cuts(kind: str, text: str, stops: list[str]) -> None:
    """The rule in its simplest form.

    Read one character at a time, until the text read so far ends with a stop string.
    """
    tokenizer = pair(kind)[0]
    prompt, ids = tokenizer.encode("x"), tokenizer.encode("|" + text, add_special_tokens=False)
    text, expected = shown(tokenizer, prompt, ids), None
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete and expected is None:
            expected = text[: end - max(map(len, complete))]
    transcript, pieces = transcribe(tokenizer, stops, prompt, ids or [40])
    if ids:
        assert "".join(pieces) == (text if expected is None else expected)
        assert transcript.finish == ("length" if expected is None else "stop")


def test_only_what_may_be_a_stop_string_is_held_back() -> None:
    tokenizer = pair("byte-level")[0]
    ids = [tokenizer.encode(letter)[0] for letter in "one\ntwo ENEND\n"]
    _, pieces = transcribe(tokenizer, ["\n\n", "END"], [40], ids)
    assert pieces == ["o", "n", "e", "", "\nt", "w", "o", " ", "", "", "EN", "", ""]


def test_many_stop_strings_cost_no_more_than_few() -> None:
    """100,000 stop strings take less than 0.01 s for 100 tokens.

    Looking for each of them took 40 s.
    """
    tokenizer = pair("byte-level")[0]
    stops = [f"stop number {n:06d}" for n in range(100_000)]
    matcher = StopStrings(StopSet(stops), tokenizer, [40])
    ids = (tokenizer.encode("the cat sat on stop number 12345") * 10)[:100]
    began = time.perf_counter()
    assert not any(matcher.push(token, visible=True) for token in ids)
    assert time.perf_counter() - began < 1
    for token in tokenizer.encode("stop number 012345"):
        matcher.push(token, visible=True)
    assert matcher.found and matcher.withheld == len(stops[0])


def test_without_stop_strings_nothing_is_held() -> None:
    tokenizer = pair("byte-level")[0]
    transcript, pieces = transcribe(tokenizer, [], [40], tokenizer.encode("abc<x>d"))
    assert "".join(pieces) == "abcd" and transcript.finish == "length"
