"""gptx export: what the artifact holds, what is refused, and that nothing is left half-written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import signal
import time
from pathlib import Path

import onnx
import pytest
import torch
from tokenizers import Tokenizer

from exported import CONFIG, write_checkpoint
from gpt_export.export import export_checkpoint
from gptx.errors import OutputError, ParityError, UsageError
from gptx_command import finished, gptx, process
from gptx_models.model import GPT


def test_the_artifact_is_whole(fp32: Path) -> None:
    manifest = json.loads((fp32 / "gptx.json").read_text())
    on_disk = {p.relative_to(fp32).as_posix() for p in fp32.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == on_disk - {"gptx.json", "README.md"}
    for name, entry in manifest["files"].items():
        content = (fp32 / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["size"])
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
    assert [v.name for v in graph.output] == ["logits", *(name.replace("past_key_values", "present") for name in past)]
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


def test_a_certificate_outside_its_limits_writes_nothing_unless_accepted(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ParityError, match="max_abs is .* the limit 1e-09.*--accept"):
        export_checkpoint(checkpoint, out, limits={"max_abs": 1e-9, "relative": 0})
    assert list(tmp_path.iterdir()) == []
    certificate = export_checkpoint(checkpoint, out, limits={"max_abs": 1e-9, "relative": 0}, accept=True)
    assert certificate["accepted"] and not certificate["passed"]
    assert "accepted as it is" in (out / "README.md").read_text()


def test_an_artifact_that_is_there_is_replaced_only_with_force(fp32: Path, checkpoint: Path, tmp_path: Path) -> None:
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
    assert outcome.status == 1 and "is an artifact already" in outcome.err and "gptx run" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_that_is_not_covered_is_named(tmp_path: Path) -> None:
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    outcome = gptx("export", tmp_path / "qwen", tmp_path / "out")
    assert outcome.status == 1 and "qwen2" in outcome.err and "--via optimum" in outcome.err and "llama" in outcome.err
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
    assert finished(started).status == 130
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
    """The certificate's figure for the reference, computed again by an independent implementation."""
    import importlib.resources

    import transformers

    text = importlib.resources.files("gpt_export").joinpath("proof.txt").read_text()
    certificate = json.loads((fp32 / "gptx.json").read_text())["certificate"]
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text).ids[: certificate["text"]["tokens"]]
    model = transformers.GPT2LMHeadModel.from_pretrained(checkpoint).eval()
    losses, window = [], certificate["text"]["window"]
    with torch.no_grad():
        for at in range(0, len(ids), window):
            piece = torch.tensor([ids[at : at + window]])
            logits = model(piece).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="none"))
    expected = torch.cat(losses).mean().exp().item()
    assert certificate["figures"]["perplexity_reference"] == pytest.approx(expected, rel=1e-5)
