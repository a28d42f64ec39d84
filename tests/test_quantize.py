"""gptx quantize: the blocks, the artifacts, their certificates, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptx
from gpt_export.blocks import dequantize_blocks, fitting_block, quantize_blocks
from gpt_export.quantize import quantize_artifact
from gpt_export.schemes import SCHEMES, quantize_weights
from gpt_export.weights import load_gpt
from gptx.errors import ArtifactError, ParityError, UsageError
from gptx.verify import forced_logits, verify
from gptx_command import gptx as command
from gptx_models.checkpoint import load_model
from gptx_models.config import GPTConfig

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40], [100, 3, 80, 220]]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 90)),
    scheme=st.sampled_from([(8, 16), (8, 64), (4, 16), (4, 32)]),
    seed=st.integers(0, 1000),
)
def test_a_weight_is_off_by_at_most_its_step(shape: tuple[int, int], scheme: tuple[int, int], seed: int) -> None:
    bits, block = scheme
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    blocks = quantize_blocks(weight, bits=bits, block=block)
    step = np.repeat(np.abs(blocks.scales), block, axis=1)[:, : shape[1]]
    # half a step by rounding; 4 bits have no +8, so the value opposite to the largest loses up to a whole one
    assert (np.abs(dequantize_blocks(blocks) - weight) <= step * (0.501 if bits == 8 else 1.001)).all()


@pytest.mark.parametrize(("n_in", "wanted", "block"), [(768, 64, 64), (576, 128, 64), (48, 64, 16), (100, 64, 64)])
def test_a_block_divides_the_width_where_one_does(n_in: int, wanted: int, block: int) -> None:
    assert fitting_block(n_in, wanted) == block


def test_zeros_stay_zeros() -> None:
    zeros = np.zeros((3, 32), np.float32)
    for bits in (4, 8):
        assert (dequantize_blocks(quantize_blocks(zeros, bits=bits, block=32)) == 0).all()


def test_weights_are_read_back_as_they_were(fp32: Path, checkpoint: Path) -> None:
    config = GPTConfig.from_dict(json.loads((fp32 / "gptx.json").read_text())["gpt_config"])
    expected = load_model(checkpoint).state_dict()
    for name, value in load_gpt(fp32, config).state_dict().items():
        assert (value == expected[name]).all(), name


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_the_graph_computes_with_the_rounded_weights(quantized: dict[str, Path], checkpoint: Path, to: str) -> None:
    """Against PyTorch with the same rounded weights: what is left is the rounding of activations."""
    import torch

    gpt = load_model(checkpoint)
    for name, blocks in quantize_weights(gpt, SCHEMES[to]).items():
        gpt.get_parameter(name).data = torch.from_numpy(dequantize_blocks(blocks))
    text = list(range(60))
    with torch.no_grad():
        expected = gpt(torch.tensor([text]))[0].numpy()
    with gptx.load(quantized[to]) as model:
        got = forced_logits(model, text)
    assert np.abs(got - expected).mean() < 0.02 * np.abs(expected).mean()


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_a_row_does_not_depend_on_the_others(quantized: dict[str, Path], to: str) -> None:
    with gptx.load(quantized[to]) as model:
        options = {"max_new_tokens": 20, "temperature": 0.0}
        alone = [model.generate(prompt, **options).token_ids for prompt in PROMPTS]
        together = [completion.token_ids for completion in model.generate(PROMPTS, **options)]
    assert together == alone


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_how_a_prompt_is_cut_changes_nothing(quantized: dict[str, Path], to: str) -> None:
    text = list(range(1, 61))
    with gptx.load(quantized[to]) as model:
        whole = forced_logits(model, text)
        with model.session() as session:
            pieces = [session.feed([piece], all_logits=True)[0] for piece in (text[:2], text[2:31], text[31:])]
    assert (np.concatenate(pieces) == whole).all()


def test_sizes(quantized: dict[str, Path], fp32: Path) -> None:
    full = (fp32 / "onnx" / "model.onnx_data").stat().st_size
    share = {to: (path / "onnx" / "model.onnx_data").stat().st_size / full for to, path in quantized.items()}
    assert share["int4"] < share["int8"] < 0.4 < share["fp16"] < 0.65


def test_fp16_is_close(quantized: dict[str, Path]) -> None:
    certificate = json.loads((quantized["fp16"] / "gptx.json").read_text())["certificate"]
    assert certificate["passed"] and certificate["figures"]["kl_mean"] < 1e-4


def test_the_chain_leads_back_to_pytorch(quantized: dict[str, Path]) -> None:
    chain = json.loads((quantized["int8"] / "gptx.json").read_text())["certificate"]["chain"]
    assert [entry["against"] for entry in chain] == ["pytorch fp32", "artifact fp32", "sum"]
    assert chain[2]["max_abs"] == pytest.approx(chain[0]["max_abs"] + chain[1]["max_abs"])


def test_against_pytorch_itself(fp32: Path, checkpoint: Path, tmp_path: Path) -> None:
    certificate = quantize_artifact(fp32, tmp_path / "out", to="int8", checkpoint=checkpoint, accept=True)
    assert certificate["against"] == "pytorch fp32" and len(certificate["chain"]) == 1


def test_what_is_quantized_is_not_quantized_again(quantized: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8 already"):
        quantize_artifact(quantized["int8"], tmp_path / "out", to="int4")


def test_a_checkpoint_is_to_be_exported_first(checkpoint: Path, tmp_path: Path) -> None:
    outcome = command("quantize", checkpoint, tmp_path / "out", "--to", "int8")
    assert outcome.status == 1 and "gptx export" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_outside_the_limits_nothing_is_written(fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="kl_mean"):
        quantize_artifact(fp32, tmp_path / "out", to="int4", limits={"kl_mean": 1e-9})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_limit_is_named(fp32: Path, tmp_path: Path) -> None:
    outcome = command("quantize", fp32, tmp_path / "out", "--to", "int8", "--limit", "perplexty=3")
    assert outcome.status == 1 and "perplexty" in outcome.err and "kl_mean" in outcome.err


def test_a_missing_weight_file_is_one_sentence(fp32: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(fp32, broken)
    (broken / "onnx" / "model.onnx_data").unlink()
    with pytest.raises(ArtifactError, match="onnx/model.onnx_data"):
        quantize_artifact(broken, tmp_path / "out", to="int8")


def test_verify_proves_every_precision(quantized: dict[str, Path], fp32: Path) -> None:
    from gptx.verify import verify

    assert verify(fp32).passed
    for path in quantized.values():
        report = verify(path)
        assert {row.name: row.here for row in report.rows}["batch"] is not None
    assert verify(quantized["fp16"]).passed


def test_verify_sees_a_changed_weight(fp32: Path, tmp_path: Path) -> None:
    from gptx.verify import verify

    changed = tmp_path / "changed"
    shutil.copytree(fp32, changed)
    data = changed / "onnx" / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0x40
    data.write_bytes(content)
    with pytest.raises(ArtifactError, match="onnx/model.onnx_data"):
        verify(changed)


def test_a_damaged_source_is_not_certified_anew(fp32: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(fp32, tmp_path / "fp32"))
    path = source / "gptx_reference.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(ArtifactError, match="gptx_reference.safetensors has sha256"):
        quantize_artifact(source, tmp_path / "out", to="int8", accept=True)
    assert not (tmp_path / "out").exists()


def test_the_source_is_never_replaced(fp32: Path, checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(fp32, tmp_path / "fp32"))
    with pytest.raises(UsageError, match="would replace"):
        quantize_artifact(source, source, to="int8", force=True, accept=True)
    beside = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    with pytest.raises(UsageError, match="would replace"):
        quantize_artifact(source, beside, to="int8", checkpoint=beside, force=True, accept=True)


def test_verify_reads_no_file_before_its_hash(fp32: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(fp32, tmp_path / "fp32"))
    graph = source / "onnx" / "model.onnx"
    graph.write_bytes(b"\x55" * graph.stat().st_size)
    with pytest.raises(ArtifactError, match="onnx/model.onnx has sha256"):
        verify(source)


def test_verify_of_a_certificate_in_another_form(fp32: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(fp32, tmp_path / "fp32"))
    manifest = json.loads((source / "gptx.json").read_text())
    for certificate in ({"x": 1}, [1], {**manifest["certificate"], "figures": 5}):
        (source / "gptx.json").write_text(json.dumps({**manifest, "certificate": certificate}))
        with pytest.raises(ArtifactError, match="certificate"):
            verify(source)
