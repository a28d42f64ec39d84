"""gptx export: what the artifact holds, what is refused, and that nothing is left half-written."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import onnx
import pytest
import torch
from tokenizers import Tokenizer

from builders.exported import CONFIG, write_checkpoint
from builders.gptx_command import finished, gptx, process
from gpt_export.certificate.eval_text import load_eval_text
from gpt_export.export import export_checkpoint
from gptx.artifact.folders import new_folder
from gptx.errors import CheckpointError, OutputError, ParityError, UsageError
from gptx_models.gpt.model import GPT


def test_the_artifact_is_whole(fp32: Path) -> None:
    manifest = json.loads((fp32 / "gptx.json").read_text())
    on_disk = {p.relative_to(fp32).as_posix() for p in fp32.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == on_disk - {"gptx.json", "README.md"}
    for name, entry in manifest["files"].items():
        content = (fp32 / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (
            entry["sha256"],
            entry["size"],
        )
    known = Tokenizer.from_file(str(fp32 / "tokenizer.json")).get_vocab_size()
    assert manifest["tokens"] == {"vocab_size": known, "bos": 0, "eos": [0], "pad": 0}
    certificate = manifest["certificate"]
    assert certificate["passed"] and certificate["against"] == "pytorch fp32"
    assert certificate["greedy"]["identical"] == certificate["greedy"]["compared"] == 64


def test_names_and_shapes_are_what_every_loader_expects(fp32: Path) -> None:
    graph = onnx.load(fp32 / "onnx" / "model.onnx", load_external_data=False).graph
    initializers = {tensor.name for tensor in graph.initializer}
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    inputs = [value.name for value in graph.input if value.name not in initializers]
    past = [f"past_key_values.{i}.{half}" for i in range(2) for half in ("key", "value")]
    assert inputs == ["input_ids", "attention_mask", "position_ids", *past]
    assert [v.name for v in graph.output] == [
        "logits",
        *(name.replace("past_key_values", "present") for name in past),
    ]
    assert shapes[past[0]] == ["batch_size", 4, "past_sequence_length", 16]
    assert shapes["input_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert "num_logits_to_keep" in initializers & {value.name for value in graph.input}


def test_initializers_are_the_parameters_and_tied_weights_stand_once(fp32: Path) -> None:
    graph = onnx.load(fp32 / "onnx" / "model.onnx", load_external_data=False).graph
    names = {tensor.name for tensor in graph.initializer}
    assert {name for name, _ in GPT(CONFIG).named_parameters()} <= names
    parameters = sum(p.numel() for p in GPT(CONFIG).parameters())
    assert (fp32 / "onnx" / "model.onnx_data").stat().st_size <= 4 * parameters + 4096 * len(names)


def test_a_certificate_outside_its_limits_writes_nothing_unless_accepted(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ParityError, match="max_abs is .* the limit 1e-09.*--accept"):
        export_checkpoint(checkpoint, out, limits={"max_abs": 1e-9, "relative": 0})
    assert list(tmp_path.iterdir()) == []
    certificate = export_checkpoint(
        checkpoint, out, limits={"max_abs": 1e-9, "relative": 0}, accept=True
    )
    assert certificate["accepted"] and not certificate["passed"]
    assert "accepted as it is" in (out / "README.md").read_text()


def test_an_artifact_that_is_there_is_replaced_only_with_force(
    fp32: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(fp32, out)
    with pytest.raises(OutputError, match="--force"):
        export_checkpoint(checkpoint, out)
    export_checkpoint(checkpoint, out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_removes_nothing_that_is_not_ours(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(OutputError, match="holds neither"):
        export_checkpoint(checkpoint, tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_an_artifact_is_no_checkpoint(fp32: Path, tmp_path: Path) -> None:
    outcome = gptx("export", fp32, tmp_path / "out")
    assert (
        outcome.status == 1
        and "is an artifact already" in outcome.err
        and "gptx run" in outcome.err
    )
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_that_is_not_covered_is_named(tmp_path: Path) -> None:
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text(
        '{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}'
    )
    outcome = gptx("export", tmp_path / "qwen", tmp_path / "out")
    assert (
        outcome.status == 1
        and "qwen2" in outcome.err
        and "--via optimum" in outcome.err
        and "llama" in outcome.err
    )
    assert not (tmp_path / "out").exists()


def test_shared_is_refused_where_groupqueryattention_cannot_do_it(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, attention="additive")
    folder = write_checkpoint(tmp_path / "additive", config)
    with pytest.raises(UsageError, match="additive"):
        export_checkpoint(folder, tmp_path / "out", cache="shared")


def test_dry_run_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    outcome = gptx("export", checkpoint, tmp_path / "out", "--dry-run")
    assert outcome.status == 0 and "disk" in outcome.text and "memory" in outcome.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--limit", "perplexty=3"],
        ["--limit", "kl_mean=nan"],
        ["--text", "no.txt"],
        ["--text", "."],
        ["--tokenizer", "no.json"],
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    checkpoint: Path, tmp_path: Path, options: list[str]
) -> None:
    dry, real = (
        gptx("export", checkpoint, tmp_path / "out", *options, *dry) for dry in (["--dry-run"], [])
    )
    assert (dry.status, dry.out) == (real.status, real.out) == (1, b"")
    assert dry.err.splitlines()[-1] == real.err.splitlines()[-1]


def test_a_disk_too_small_is_said_before_any_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match="it takes .* MB, and 0 MB are free"):
        export_checkpoint(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    started = process("export", checkpoint, tmp_path / "out")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    outcome = finished(started)
    assert outcome.status == 130 and outcome.err.endswith("gptx: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_the_users_own_text_is_proved_on(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("the cat sat on the mat. " * 30)
    certificate = export_checkpoint(checkpoint, tmp_path / "out", text=text)
    assert certificate["text"]["sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        export_checkpoint(checkpoint, tmp_path / "out2", text=text)


def test_perplexity_is_transformers_own(fp32: Path, checkpoint: Path) -> None:
    """The reference's perplexity in the certificate equals that of transformers."""
    import importlib.resources

    import transformers

    text = importlib.resources.files("gpt_export").joinpath("proof.txt").read_text()
    certificate = json.loads((fp32 / "gptx.json").read_text())["certificate"]
    ids = (
        Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        .encode(text)
        .ids[: certificate["text"]["tokens"]]
    )
    model = transformers.GPT2LMHeadModel.from_pretrained(checkpoint).eval()
    losses, window = [], certificate["text"]["window"]
    with torch.no_grad():
        for at in range(0, len(ids), window):
            piece = torch.tensor([ids[at : at + window]])
            logits = model(piece).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="none"))
    expected = torch.cat(losses).mean().exp().item()
    assert certificate["figures"]["perplexity_reference"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "gptx_source.json"])
@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b'{"a": ', b"[]", b"\xff"]
)
def test_a_damaged_side_file_is_one_sentence(
    checkpoint: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        export_checkpoint(folder, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]


def test_the_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", dataclasses.replace(CONFIG, vocab_size=200))
    with pytest.raises(CheckpointError, match="tokenizer of another model"):
        export_checkpoint(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "says"), [("", "holds 0 tokens"), ("a", "holds 1 token"), ("é" * 9, None)]
)
def test_the_users_text_is_never_replaced(
    checkpoint: Path, tmp_path: Path, text: str, says: str | None
) -> None:
    (tmp_path / "text.txt").write_text(text, "utf-8")
    if says is None:
        assert load_eval_text(
            checkpoint, vocab_size=304, n_ctx=128, text=tmp_path / "text.txt"
        ).description["tokens"]
        return
    with pytest.raises(UsageError, match=says):
        load_eval_text(checkpoint, vocab_size=304, n_ctx=128, text=tmp_path / "text.txt")


def test_a_text_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words", "utf-8")
    with pytest.raises(UsageError, match="no tokenizer"):
        load_eval_text(tmp_path, vocab_size=304, n_ctx=128, text=tmp_path / "text.txt")


@pytest.mark.parametrize("out", [".", "../checkpoint", ".."])
def test_the_source_is_never_replaced(checkpoint: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "config.json").write_text("{}")  # so that --force would take the parent as well
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    for extra in ([], ["--via", "optimum"]):
        outcome = gptx("export", folder, folder / out, "--force", *extra)
        assert outcome.status == 1 and "would replace" in outcome.err
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_a_limit_is_a_number_from_0_on(checkpoint: Path, tmp_path: Path, value: str) -> None:
    outcome = gptx("export", checkpoint, tmp_path / "out", "--limit", f"max_abs={value}")
    says = f"gptx: the limit max_abs is {float(value)}, expected a number of 0 or more\n"
    assert (outcome.status, outcome.err) == (1, says)


@pytest.mark.parametrize(
    "option",
    [["--dry-run"], ["--tokenizer", "x"], ["--allow-pickle"], ["--cache-type", "int8"]],
    ids=" ".join,
)
def test_via_optimum_refuses_what_it_does_not_do(
    checkpoint: Path, tmp_path: Path, option: list[str]
) -> None:
    outcome = gptx("export", checkpoint, tmp_path / "out", "--via", "optimum", *option)
    assert outcome.status == 1 and f"--via optimum has no {option[0]}" in outcome.err
    assert not (tmp_path / "out").exists()


def test_the_next_command_can_be_pasted(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "a checkpoint"))
    (folder / "tokenizer.json").unlink()
    outcome = gptx("export", folder, tmp_path / "an artifact")
    assert outcome.text.endswith(f"next: gptx run -m '{tmp_path}/an artifact' --tokens 1,2,3\n")


def test_the_current_folder_is_not_replaced(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for out in (".", "..", tmp_path):
        with pytest.raises(OutputError, match="current folder"):
            export_checkpoint(checkpoint, Path(out), force=True)


def test_behind_a_link_the_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for text in ("old", "new"):
        with new_folder(tmp_path / "link", force=True) as staging:
            (staging / "config.json").write_text(text)
    assert (tmp_path / "link").is_symlink() and (
        tmp_path / "real" / "config.json"
    ).read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def test_ctrl_c_between_the_renames_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")
    renamed: list[Path] = []
    really = os.rename

    def rename(source: Path, target: Path) -> None:
        renamed.append(target)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        really(source, target)

    monkeypatch.setattr("gptx.artifact.folders.os.rename", rename)
    with pytest.raises(KeyboardInterrupt), new_folder(out, force=True) as staging:
        (staging / "config.json").write_text("new")
    assert (out / "config.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="Linux")
def test_a_disk_that_fills_meanwhile(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk space for the reference's logits is reserved: a mapped write without it is a SIGBUS."""

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="cannot write .*out: No space left on device"):
        export_checkpoint(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
