"""int8-fast: the files of int8-channels, and a second graph for single rows on the same cache."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import gptx
from builders.gptx_command import gptx as command
from builders.native_graphs import onnx_runtime_operators
from builders.tiny_artifact import refresh
from gpt_export.export import export_checkpoint
from gpt_export.quantization.quantize import quantize_artifact
from gptx.artifact.hashes import check_hashes
from gptx.artifact.manifest import read_manifest
from gptx.compile import compile_artifact
from gptx.errors import ArtifactError, UsageError
from gptx.generation.session import Session
from gptx.inspect import describe
from gptx.ort import compiled
from gptx.ort.graph import open_graph
from gptx.ort.sessions import OLDEST_THAT_COMPILES
from gptx.system.cpu import cpu_features, int8_saturates
from gptx.verify import forced_logits, verify
from gptx_models.checkpoints.checkpoint import save_checkpoint
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

ORT = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
TEXT = [5, 6, 7, 8, 9, 10, 11, 40, 100, 3, 80, 220, 17, 31]


@pytest.fixture(autouse=True, scope="module")
def where_the_second_graph_runs() -> Iterator[None]:
    """Native operators run the step graph for single rows too."""
    with onnx_runtime_operators():
        yield


@pytest.fixture(scope="module")
def fast(fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fast") / "int8-fast"
    quantize_artifact(fp32, out, to="int8-fast", accept=True)
    return out


@pytest.fixture
def folder(fast: Path, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may damage."""
    return Path(shutil.copytree(fast, tmp_path / "artifact"))


class Counted:
    """An ONNX Runtime session that counts its runs."""

    def __init__(self, session: Any) -> None:
        self.session, self.runs = session, 0

    def io_binding(self) -> Any:
        return self.session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self.runs += 1
        self.session.run_with_iobinding(binding, options)


def counted(path: Path, rows: int = 1) -> tuple[Session, Counted, Counted]:
    """A session on `path`, and its counted graphs for many rows and for single rows."""
    opened = open_graph(read_manifest(path), threads=1)
    many, single = Counted(opened.session), Counted(opened.decode)
    return Session(dataclasses.replace(opened, session=many, decode=single), rows), many, single


def near(got: np.ndarray, expected: np.ndarray) -> bool:
    """Equal up to the rounding of activations."""
    return bool(np.abs(got - expected).mean() < 0.04 * np.abs(expected).mean())


def test_everything_of_int8_is_there_and_the_weights_once(
    fast: Path, quantized: dict[str, Path]
) -> None:
    for name in ("model.onnx", "model.onnx_data"):
        assert (fast / "onnx" / name).read_bytes() == (
            quantized["int8-channels"] / "onnx" / name
        ).read_bytes()
    assert {file.name for file in (fast / "onnx").iterdir()} == {
        "model.onnx",
        "model.onnx_data",
        "decode.onnx",
        "step.onnx",
    }
    graph = onnx.load(fast / "onnx" / "decode.onnx", load_external_data=False).graph
    kinds = {node.op_type for node in graph.node}
    assert "MatMulNBits" in kinds and "MatMulIntegerToFloat" not in kinds
    # scales of few channels may be folded; a weight must lie in model.onnx_data
    assert max(len(tensor.raw_data) for tensor in graph.initializer) <= 4096


def test_the_manifest_and_the_certificate_know_it(fast: Path) -> None:
    manifest = read_manifest(fast)
    check_hashes(manifest)
    assert (manifest.precision, manifest.decode) == ("int8", fast / "onnx/decode.onnx")
    assert manifest.raw["quantization"]["scheme"] == "int8-fast"
    assert 0 < manifest.certificate["consistency"]["cached_kl"] < 1e-3
    assert ("decode graph", "proved by cached, batch, greedy: single rows run in it") in describe(
        fast
    ).certificate
    report = verify(fast, threads=1)
    assert {row.name for row in report.rows if not row.ok} <= {
        "kl_mean"
    }  # random weights exceed the limits
    assert any("single rows in onnx/decode.onnx" in note for note in report.notes)
    assert (
        "onnx/decode.onnx, for steps of a single row on a CPU"
        in dict(describe(fast).facts).values()
    )


def test_it_computes_with_the_weights_of_int8(fast: Path, quantized: dict[str, Path]) -> None:
    with (
        gptx.load(quantized["int8-channels"], threads=1) as model,
        gptx.load(fast, threads=1) as other,
    ):
        assert (model.decode, other.decode) == (None, fast / "onnx/decode.onnx")
        expected = forced_logits(model, TEXT)
        assert (forced_logits(other, TEXT) == expected).all()
        with other.session() as session:
            steps = np.stack([session.feed([[token]])[0] for token in TEXT])
        assert near(steps, expected) and not (steps == expected).all()
        texts = [
            m.generate(TEXT, max_new_tokens=20, temperature=0.0).token_ids for m in (model, other)
        ]
    assert texts[0][:4] == texts[1][:4]


def test_only_single_rows_run_in_it(fast: Path) -> None:
    session, many, single = counted(fast)
    session.feed([TEXT])
    session.feed([[1]])
    session.feed([[2]])
    session.feed([[3]], all_logits=True)
    assert (many.runs, single.runs) == (2, 2)
    session, many, single = counted(fast, rows=3)
    session.feed([TEXT, TEXT[:3], TEXT[:1]])  # two prefills, and a step of the third row
    assert (many.runs, single.runs) == (2, 1)
    session.feed([[1], [2], [3]])
    session.feed([[1], [], [3]])
    assert (many.runs, single.runs) == (4, 1)
    session.feed([[], [7], []])
    assert (many.runs, single.runs) == (4, 2)


def test_both_graphs_see_one_cache(fast: Path) -> None:
    """Steps, pieces, rewinding and growing buffers give the logits of one run of the whole text."""
    text = np.random.default_rng(1).integers(0, 277, 128).tolist()
    with gptx.load(fast, threads=1) as model, model.session() as session:
        expected = forced_logits(model, text)
        got: dict[int, np.ndarray] = {}

        def feed(start: int, *sizes: int) -> None:
            for size in sizes:
                got[start + size - 1] = session.feed([text[start : start + size]])[0]
                start += size

        feed(0, 1, 1, 20, 1, 1, 3, 1)
        session.rewind([10])
        feed(10, 1, 1, 30, 1)
        session.rewind([12])
        feed(12, 60, 1, 1, 50, 1, 1, 1, 1)
        assert all(near(logits, expected[at]) for at, logits in got.items())


@pytest.mark.wide
def test_growth_across_powers_of_two(tmp_path: Path) -> None:
    """In pieces, with widths that no block divides."""
    config = GPTConfig(
        vocab_size=97, n_ctx=600, n_layer=2, n_head=6, n_embd=48, n_inner=100, position="rope"
    )
    torch.manual_seed(2)
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(
        GPT(config).eval(),
        checkpoint,
        tokenizer_files=None,
        source={"format": "test"},
        generation=None,
    )
    export_checkpoint(checkpoint, tmp_path / "fp32")
    quantize_artifact(tmp_path / "fp32", tmp_path / "fast", to="int8-fast", accept=True)
    text = np.random.default_rng(3).integers(0, 97, 530).tolist()
    with gptx.load(tmp_path / "fast", threads=1) as model, model.session() as session:
        expected = forced_logits(model, text)
        first = session.feed([text[:120]], all_logits=True)[0]
        capacities, steps = {session.capacity}, []
        for token in text[120:]:
            steps.append(session.feed([[token]])[0])
            capacities.add(session.capacity)
    assert capacities == {128, 256, 512, 600}
    assert near(np.concatenate((first, steps)), expected)


def test_rows_of_a_batch(fast: Path) -> None:
    """Rows that step together, alone, or not at all, against the same rows each in a session."""
    rows = [TEXT[:9], TEXT[2:5], TEXT[4:5]]
    with gptx.load(fast, threads=1) as model, model.session(3) as session:
        session.feed(rows)
        session.feed([[1], [2], [3]])
        session.feed([[], [4], []])
        session.feed([[5], [], [6]])
        logits = session.feed([[7], [8], [9]])
        for row, tokens in enumerate(session.tokens):
            assert near(logits[row], forced_logits(model, tokens)[-1])


@pytest.mark.skipif(
    int8_saturates(cpu_features()),
    reason="on this CPU ONNX Runtime's 8-bit products saturate without the settings of gptx",
)
def test_optimum_takes_the_other_graph(fast: Path, quantized: dict[str, Path]) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    options = {
        "attention_mask": torch.ones(1, len(TEXT), dtype=torch.int64),
        "max_new_tokens": 12,
        "do_sample": False,
    }
    texts = [
        ORTModelForCausalLM.from_pretrained(path).generate(torch.tensor([TEXT]), **options).tolist()
        for path in (fast, quantized["int8"])
    ]
    assert texts[0] == texts[1]


@pytest.mark.skipif(ORT < OLDEST_THAT_COMPILES, reason="this ONNX Runtime compiles nothing")
def test_both_graphs_are_compiled(
    fast: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compile_artifact(fast, tmp_path / "out", accept=True)
    manifest = read_manifest(tmp_path / "out")
    check_hashes(manifest)
    assert set(compiled.FILES) - {compiled.PACKED} <= set(manifest.files)
    portable = manifest.path / "onnx/decode.onnx"
    graph = portable.read_bytes()
    portable.write_bytes(b"\0" * len(graph))  # not read if the compiled graph fits
    capsys.readouterr()
    with gptx.load(fast, threads=1) as model, gptx.load(manifest.path, threads=1) as other:
        assert other.decode == manifest.path / compiled.DECODE and capsys.readouterr().err == ""
        options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.0}
        assert (
            model.generate(TEXT, **options).token_ids == other.generate(TEXT, **options).token_ids
        )
    portable.write_bytes(graph)
    damaged = manifest.path / compiled.DECODE
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    with gptx.load(manifest.path, threads=1) as other:
        assert (other.decode, other.graph) == (portable, manifest.path / compiled.GRAPH)
    (line,) = capsys.readouterr().err.splitlines()
    assert "decode.pb is not used" in line


def test_a_decode_graph_that_is_not_there(folder: Path) -> None:
    (folder / "onnx/decode.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"onnx/decode\.onnx is missing"):
        gptx.load(folder)


def test_damage_is_caught_by_its_hash(folder: Path) -> None:
    graph = folder / "onnx/decode.onnx"
    graph.write_bytes(b"\0" * graph.stat().st_size)
    with pytest.raises(ArtifactError, match=r"onnx/decode\.onnx has sha256"):
        verify(folder, threads=1)


def test_what_cannot_be_opened_is_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = folder / "onnx/decode.onnx"
    graph.write_bytes(b"\0" * graph.stat().st_size)
    with gptx.load(folder, threads=1) as model:
        assert model.decode is None
        (line,) = capsys.readouterr().err.splitlines()
        assert "decode.onnx is not used" in line and line.endswith(
            "single rows run as all others do"
        )
        expected = forced_logits(model, TEXT)
        with model.session() as session:
            assert near(np.stack([session.feed([[token]])[0] for token in TEXT]), expected)


def test_the_graph_of_another_model(folder: Path, artifacts: dict[str, Path]) -> None:
    shutil.copyfile(artifacts["shared"] / "onnx/model.onnx", folder / "onnx/decode.onnx")
    refresh(folder)
    with pytest.raises(ArtifactError, match=r"decode\.onnx has other inputs or outputs"):
        gptx.load(folder)


def test_a_manifest_that_names_another_file(folder: Path) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    (folder / "gptx.json").write_text(json.dumps({**manifest, "decode": "elsewhere.onnx"}))
    with pytest.raises(
        ArtifactError, match=r"decode is 'elsewhere\.onnx', expected 'onnx/decode\.onnx'"
    ):
        gptx.load(folder)
    del manifest["files"]["onnx/decode.onnx"]
    (folder / "gptx.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"does not list onnx/decode\.onnx"):
        gptx.load(folder)


def test_what_it_refuses(fast: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    for form in ("growing", "scatter"):
        outcome = command("quantize", artifacts[form], tmp_path / "out", "--to", "int8-fast")
        assert outcome.status == 1 and f"has {form}" in outcome.err
    with pytest.raises(UsageError, match="int8 already"):
        quantize_artifact(fast, tmp_path / "out", to="int4")
    assert list(tmp_path.iterdir()) == []
