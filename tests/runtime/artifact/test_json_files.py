"""JSON that cannot be read is refused in one sentence that names the place and the fault."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import gptx
from builders.gptx_command import gptx as command
from builders.tiny_artifact import refresh
from gptx.artifact.json_files import MOST_DEEP, parse_json, read_json
from gptx.errors import ArtifactError, CheckpointError, GptxError, UsageError
from gptx_models.checkpoints.checkpoint import load_model
from gptx_models.importers import import_checkpoint

DEEP = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (DEEP, "brackets are nested more than 100 deep"),
        ('{"a":' * 101 + "1" + "}" * 101, "brackets are nested more than 100 deep"),
        ("[" * 200_000, "brackets are nested more than 100 deep"),
        ("1" * 5000, "not JSON that can be read: Exceeds the limit"),
        (r'{"a": "\ud800"}', r"half a surrogate pair \('\\ud800'\)"),
        (b'{"a": "\xff"}', "not UTF-8 text: byte 7 is 0xff"),
        ('{"a": 1,}', r"not JSON: .* \(column 9\)"),
        ('{\n"a": b}', r"not JSON: Expecting value \(line 2, column 6\)"),
    ],
)
def test_text_that_cannot_be_read(text: str | bytes, says: str) -> None:
    with pytest.raises(UsageError, match=f"^line 5 .*{says}.*: mend it$") as caught:
        parse_json(text, "line 5", UsageError, advice=": mend it")
    assert "\n" not in str(caught.value)


def test_values_are_read_up_to_the_limit() -> None:
    value = parse_json("[" * MOST_DEEP + "1" + "]" * MOST_DEEP, "here", UsageError)
    for _ in range(MOST_DEEP):
        (value,) = value
    assert value == 1
    assert parse_json("[" + ",".join(["[[1]]"] * 1000) + "]", "here", UsageError) == [[[1]]] * 1000


def test_files_that_are_no_objects(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert read_json(file, UsageError, optional=True) == {}
    with pytest.raises(UsageError, match="a.json does not exist"):
        read_json(file, UsageError)
    for raw, says in (
        (b"", "is empty"),
        (b"[]", "holds a JSON list, expected an object"),
        (b"null", "a JSON null"),
        (b"version https://git-lfs", "Git LFS pointer"),
    ):
        file.write_bytes(raw)
        with pytest.raises(
            UsageError, match=f"a.json {says}|a.json is a {says}|a.json holds {says}"
        ):
            read_json(file, UsageError)
    file.unlink()
    os.mkfifo(file)  # reading it would never end
    with pytest.raises(UsageError, match="a.json is not a file"):
        read_json(file, UsageError, optional=True)


ARTIFACT_FILES = (
    "gptx.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "gptx_task.json",
)


@pytest.mark.parametrize("name", ARTIFACT_FILES)
def test_endless_brackets_in_an_artifact(
    name: str, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["shared"], tmp_path / "artifact"))
    (folder / name).write_text(DEEP)
    if name != "gptx.json":
        refresh(folder)

    def use() -> None:
        with gptx.load(folder, threads=1) as model:
            model.classify("a", ["b", "c"])

    if name == "config.json":  # gptx.load does not read it
        assert command("inspect", folder).err.startswith("gptx: ")
        return
    with pytest.raises(ArtifactError, match=name):
        use()


@pytest.mark.parametrize(
    "template",
    ["{% if true %}" * 7_000, "{{ " + "(" * 20_000, "{% for x in [] %}" * 30 + "{% endfor %}" * 30],
)
def test_a_template_that_nests_too_deep(
    template: str, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["shared"], tmp_path / "artifact"))
    (folder / "chat_template.jinja").write_text(template)
    refresh(folder)
    with (
        gptx.load(folder, threads=1) as model,
        pytest.raises(ArtifactError, match="template.*nests too deep"),
    ):
        model.chat().send("hello")


CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "gptx_source.json",
    "model.safetensors",
)


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_endless_brackets_in_a_checkpoint(name: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    raw = DEEP.encode()
    (folder / name).write_bytes(
        len(raw).to_bytes(8, "little") + raw if name == "model.safetensors" else raw
    )
    with pytest.raises(CheckpointError, match=name):
        import_checkpoint(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_endless_brackets_in_an_index_of_shards(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(DEEP)
    with pytest.raises(CheckpointError, match="index.json"):
        load_model(folder)


def test_endless_brackets_in_an_adapter(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(DEEP)
    outcome = command("merge", tmp_path, tmp_path / "out", "--base", checkpoint)
    assert (
        outcome.status == 1
        and outcome.err.startswith("gptx: ")
        and "adapter_config.json" in outcome.err
    )


@pytest.mark.parametrize("line", [DEEP, '{"text": "a", "label": 1e', "\ud800"])
def test_examples_of_a_task(line: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_bytes(line.encode("utf-8", "surrogatepass"))
    words: list[Any] = ["classify", "-m", artifacts["shared"], "a", "--label", "b", "--label", "c"]
    outcome = command(*words, "--examples", file)
    assert outcome.status and outcome.err.startswith("gptx: ") and "examples.jsonl" in outcome.err


def test_errors_have_the_class_that_the_caller_gives(tmp_path: Path) -> None:
    for kind in (ArtifactError, CheckpointError, UsageError):
        with pytest.raises(GptxError) as caught:
            parse_json("{", "here", kind)
        assert type(caught.value) is kind
