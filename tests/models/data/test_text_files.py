"""Documents of text files: streamed, decompressed, divided; each fault is one clear error."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gptx.errors import UsageError
from gptx_models.data import compressed_text, text_files
from gptx_models.data.compressed_text import split_stream
from gptx_models.data.text_files import documents, list_files

TALES = ["Once upon a time\nthere was a king.\n", "Es war einmal ein König — 王様 🐸\n", "The end."]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".xz": lambda data: lzma.compress(data, preset=0),  # a dictionary of 256 KB
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


@pytest.fixture(params=[7, 1 << 18], autouse=True)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Read in pieces of 7 bytes too, which cut characters, separators and streams."""
    monkeypatch.setattr(compressed_text, "_CHUNK", request.param)


def write(file: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(PACK[file.suffix.lower() if file.suffix.lower() in PACK else ""](data))
    return file


@pytest.mark.parametrize("packing", PACK)
def test_a_text_is_divided_and_jsonl_is_a_document_a_line(tmp_path: Path, packing: str):
    text = write(tmp_path / f"a.txt{packing}", "<|endoftext|>".join(TALES))
    records = "\n".join(json.dumps({"id": n, "text": tale}) for n, tale in enumerate(TALES))
    jsonl = write(tmp_path / f"b.JSONL{packing}", f"{records}\n\n")
    assert list(documents([text])) == TALES
    assert list(documents([jsonl])) == TALES
    assert list(documents([text, jsonl, text])) == TALES * 3


@pytest.mark.parametrize("packing", PACK)
def test_the_bytes_read_are_those_on_disk(tmp_path: Path, packing: str):
    files = [
        write(tmp_path / f"{name}.txt{packing}", "<|endoftext|>".join(TALES * 9)) for name in "ab"
    ]
    told: list[int] = []
    assert len(list(documents(files, read=told.append))) == 2 * 9 * 3
    assert sum(told) == sum(file.stat().st_size for file in list_files(files))


def test_a_folder_is_all_its_texts_in_order(tmp_path: Path):
    for name in (
        "b/2.md",
        "b/10.txt.xz",
        "a.jsonl.gz",
        "c.TXT",
        ".git/x.txt",
        "b/.hidden.txt",
        "b/picture.png",
    ):
        write(tmp_path / name, json.dumps({"text": name}) if "jsonl" in name else name)
    assert [str(file.relative_to(tmp_path)) for file in list_files([tmp_path])] == [
        "a.jsonl.gz",
        "b/10.txt.xz",
        "b/2.md",
        "c.TXT",
    ]
    assert list(documents([tmp_path])) == ["a.jsonl.gz", "b/10.txt.xz", "b/2.md", "c.TXT"]


def test_what_windows_writes(tmp_path: Path):
    file = write(tmp_path / "a.txt", "\ufeffone\r\ntwo\r\n<|endoftext|>\r\nthree\r")
    assert list(documents([file])) == ["one\ntwo\n", "\nthree\n"]


def test_streams_that_were_joined(tmp_path: Path):
    for packing, pack in PACK.items():
        file = tmp_path / f"a.txt{packing}"
        padding = b"\0" * 8 if packing in (".xz", ".gz") else b""  # as xz and gzip allow it
        file.write_bytes(pack(b"one ") + padding + pack(b"") + pack(b"two") + padding)
        assert list(documents([file])) == ["one two"]


def test_another_field_and_other_ends_of_lines_in_json(tmp_path: Path):
    file = write(
        tmp_path / "a.jsonl", '{"content": "one\u2028two\x85three\\nfour"}\r\n{"content": ""}'
    )
    assert list(documents([file], field="content")) == ["one\u2028two\x85three\nfour"]


def test_documents_without_text_are_left_out(tmp_path: Path):
    file = write(tmp_path / "a.txt", "<|endoftext|>\n\n<|endoftext|>one<|endoftext|> <|endoftext|>")
    assert list(documents([write(tmp_path / "b.txt", ""), file])) == ["one"]


def test_a_document_that_is_too_long_comes_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(text_files, "LONGEST", 1000)
    monkeypatch.setattr(compressed_text, "_CHUNK", 100)
    text = "".join(f"line {n}\n" for n in range(1000))
    parts = list(documents([write(tmp_path / "a.txt", text)]))
    assert "".join(parts) == text
    assert all(part.endswith("\n") and len(part) < 1200 for part in parts)


@pytest.mark.parametrize("packing", PACK)
def test_memory_does_not_follow_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
):
    monkeypatch.setattr(compressed_text, "_CHUNK", 1 << 12)
    text = random.Random(1).randbytes(1_000_000).hex()
    file = write(tmp_path / f"a.txt{packing}", text.replace("00", "<|endoftext|>"))
    expected = len(text.replace("00", ""))
    del text
    tracemalloc.start()
    try:
        assert sum(len(document) for document in documents([file])) == expected
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@given(st.text("ab<|>", max_size=60), st.lists(st.integers(0, 60), max_size=8))
def test_a_separator_may_be_cut_anywhere(text: str, cuts: list[int]):
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in zip(places, places[1:])]
    assert list(split_stream(iter(pieces), "<|>")) == text.split("<|>")


TEXT = "Once upon a time there was a king who had three daughters.\n" * 30


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"one\ntw\xf6\n", "a.txt is not UTF-8 text: byte 6, in line 2, is 0xf6"),
        ("a.txt", "one kö".encode()[:-1], "a.txt is not UTF-8 text: byte 5, in line 1, is 0xc3"),
        ("a.txt", "one".encode("utf-16"), "a.txt is not UTF-8 text: byte 0, in line 1, is 0xff"),
        (
            "a.jsonl",
            '{"text": "one"}\n\n{"text": two}',
            "a.jsonl, line 3 is not JSON: Expecting value (column 10)",
        ),
        ("a.jsonl", '["one"]', "a.jsonl, line 1 is a JSON list: an object is expected"),
        (
            "a.jsonl",
            '{"title": "", "body": ""}',
            "a.jsonl, line 1 has no field text; it has title, body",
        ),
        (
            "a.jsonl",
            '{"text": null}',
            "a.jsonl, line 1: the field text is a null, text is expected",
        ),
        (
            "a.jsonl",
            '{"text": "\\ud83d"}',
            "a.jsonl, line 1 holds half a surrogate pair ('\\ud83d')",
        ),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1 is not JSON that can be read"),
        ("a.txt", "", "there is no text in "),
        ("a.txt", " \n<|endoftext|>\n", "there is no text in "),
        (
            "a.pdf",
            "one",
            "a.pdf is of an unknown kind: .txt, .md, .jsonl, or one of these with .xz, .gz, .zst",
        ),
        ("a.xz", "one", "a.xz is of an unknown kind"),
        ("folder/a.pdf", "one", "folder is a folder without a file to read: .txt"),
        *(
            (f"a.txt{kind}", None, f"a.txt{kind} is broken, or no {kind} file: ")
            for kind in (".xz", ".gz", ".zst")
        ),
        *(
            (f"a.txt{kind}", "cut", f"a.txt{kind} is broken: it ends in the middle")
            for kind in (".xz", ".gz", ".zst")
        ),
    ],
)
def test_a_fault_is_one_sentence(tmp_path: Path, name: str, content: str | bytes | None, said: str):
    file = tmp_path / name
    if content is None:
        file.write_bytes(b"no such stream")
    elif content == "cut":
        file.write_bytes(write(file, TEXT).read_bytes()[:-5])
    else:
        write(file, content)
    with pytest.raises(UsageError) as caught:
        list(documents([file if file.parent == tmp_path else file.parent]))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_closed(tmp_path: Path):
    with pytest.raises(UsageError, match=r"none\.txt is missing"):
        list(documents([tmp_path / "none.txt"]))
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    with pytest.raises(UsageError, match=r"loop\.txt is missing"):
        list(documents([tmp_path / "loop.txt"]))
