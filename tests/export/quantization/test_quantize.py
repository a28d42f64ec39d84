"""gptx quantize: blocks, artifacts, their certificates, and refusals."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gptx
from builders.four_bit_weights import make_q4_1, q4_1
from builders.gptx_command import gptx as command
from gpt_export.certificate.eval_text import load_eval_text
from gpt_export.export import export_checkpoint
from gpt_export.graph.build import build_graph, save_graph
from gpt_export.graph.layers import Quantized, graph_layers
from gpt_export.graph.read_weights import load_gpt
from gpt_export.graph.write_step_graph import step_facts, write_step_graph
from gpt_export.mixed_precision.mix import values_of
from gpt_export.quantization import quantize
from gpt_export.quantization.blocks import BlockWeights, StackedWeights, dequantize_blocks
from gpt_export.quantization.calibrate import round_layers
from gpt_export.quantization.embeddings import Form, common_tokens, tables
from gpt_export.quantization.gptq import Grid, fitting_block, round_gptq, round_nearest
from gpt_export.quantization.offsets import dequantize_offsets, detect_q4_1
from gpt_export.quantization.quantize import quantize_artifact
from gpt_export.quantization.recipes import SCHEMES, most_worth, pack, quantize_weights, scheme_name
from gptx.artifact.manifest import read_manifest
from gptx.errors import ArtifactError, ParityError, UsageError
from gptx.generation.session import Session
from gptx.ort.native import onnx_runtime_only
from gptx.parity.reference import Reference
from gptx.system.cpu import cpu_features
from gptx.verify import forced_logits, verify
from gptx_models.checkpoints.checkpoint import load_model, save_checkpoint
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40], [100, 3, 80, 220]]


GRIDS = [
    Grid(8),
    Grid(8, 16),
    Grid(8, 64),
    Grid(4, 16),
    Grid(4, 32),
    Grid(4, 32, symmetric=False),
    Grid(4, 16, False, 8),
]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 90)),
    grid=st.sampled_from(GRIDS),
    seed=st.integers(0, 1000),
)
def test_a_weight_is_off_by_at_most_its_step(shape: tuple[int, int], grid: Grid, seed: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    rounded = round_nearest(weight, grid)
    steps = rounded.scales.abs().repeat_interleave(grid.block or shape[1], dim=1)[:, : shape[1]]
    # half a step by rounding; grids of few levels also clip, up to a third of their range
    allowed = 0.501 if grid.bits == 8 else 0.3 * 16 + 1
    assert ((rounded.values() - weight).abs() <= steps * allowed).all()
    packed = pack(rounded)
    if isinstance(packed, BlockWeights):
        assert np.array_equal(dequantize_blocks(packed), rounded.values().numpy())
    else:
        assert np.allclose(packed.levels.T * packed.scales[:, None], rounded.values().numpy())


def test_the_zero_point_of_negative_blocks_is_one_of_16() -> None:
    weight = -torch.rand(400, 16, generator=torch.Generator().manual_seed(1)) - 0.5
    rounded = round_nearest(weight, Grid(4, 16, symmetric=False))
    assert (
        rounded.zeros is not None and rounded.zeros.max() <= 15
    )  # -least / widest slightly exceeds 15 in some rows
    packed = pack(rounded)
    assert isinstance(packed, BlockWeights) and np.array_equal(
        dequantize_blocks(packed), rounded.values().numpy()
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_gptq_keeps_the_output_better_than_the_nearest_levels(grid: Grid) -> None:
    random = torch.Generator().manual_seed(3)
    mixing = torch.randn(96, 96, generator=random)
    inputs = torch.randn(600, 96, generator=random) @ mixing  # correlated columns
    weight = torch.randn(40, 96, generator=random)
    errors = [
        (inputs @ (rounded.values() - weight).T).square().mean()
        for rounded in (round_gptq(weight, inputs.T @ inputs, grid), round_nearest(weight, grid))
    ]
    assert errors[0] < 0.7 * errors[1]


def test_gptq_of_inputs_that_say_nothing() -> None:
    """Fewer inputs than columns, and columns that are always zero."""
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    inputs[:, ::3] = 0
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    rounded = round_gptq(weight, inputs.T @ inputs, Grid(8))
    assert torch.isfinite(rounded.values()).all() and (rounded.values() - weight).abs().max() < 0.2


@pytest.mark.parametrize(
    ("n_in", "wanted", "block"), [(768, 64, 64), (576, 128, 64), (48, 64, 16), (100, 64, 64)]
)
def test_a_block_divides_the_width_where_one_does(n_in: int, wanted: int, block: int) -> None:
    assert fitting_block(n_in, wanted) == block


@pytest.mark.parametrize("grid", GRIDS)
def test_zeros_stay_zeros(grid: Grid) -> None:
    assert (round_nearest(torch.zeros(3, 32), grid).values() == 0).all()
    assert (round_gptq(torch.zeros(3, 32), torch.eye(32), grid).values() == 0).all()


def test_more_bits_go_where_they_save_most_for_their_work() -> None:
    costs, work = {"a": 4e-3, "b": 3e-3, "c": 1e-3}, {"a": 400, "b": 100, "c": 100}
    assert most_worth(costs, work, 1.0) == []
    assert most_worth(costs, work, 5.5e-3) == ["b"]
    assert most_worth(costs, work, 1.5e-3) == ["b", "a"] or most_worth(costs, work, 1.5e-3) == [
        "b",
        "c",
        "a",
    ]
    assert len(most_worth(costs, work, 0.0)) == 3


def save(config: GPTConfig, folder: Path) -> Path:
    torch.manual_seed(1)
    save_checkpoint(
        GPT(config).eval(), folder, tokenizer_files=None, source={"format": "test"}, generation=None
    )
    return folder


def own_windows(exported: Path, config: GPTConfig) -> list[list[int]]:
    """Windows of the calibration text, as quantize_artifact makes them."""
    own = load_eval_text(
        exported,
        vocab_size=config.vocab_size,
        n_ctx=config.n_ctx,
        own="calibration",
        most=quantize.CALIBRATION_TOKENS,
    )
    return own.windows


def refresh_manifest(folder: Path) -> None:
    """Write to gptx.json what it says of graphs that a test has replaced."""
    manifest = json.loads((folder / "gptx.json").read_text()) | step_facts(folder)
    for name, facts in manifest["files"].items():
        facts["size"] = (folder / name).stat().st_size
    (folder / "gptx.json").write_text(json.dumps(manifest))


def write_graphs(gpt: GPT, weights: dict[str, Quantized], artifact: Path) -> None:
    """Replace the graphs of an artifact by those of `gpt` with these weights."""
    graph = build_graph(graph_layers(gpt, "shared", weights), "shared")
    save_graph(graph, artifact / "onnx")
    write_step_graph(gpt, artifact)
    refresh_manifest(artifact)


def logits_of_each_graph(artifact: Path, tokens: list[int]) -> Iterator[np.ndarray]:
    """Logits of model.onnx and, where there are native operators, of step.onnx."""
    with onnx_runtime_only(), gptx.load(artifact) as model:
        yield forced_logits(model, tokens)
    with gptx.load(artifact) as model:
        yield forced_logits(model, tokens)


def test_weights_are_read_back_as_they_were(fp32: Path, checkpoint: Path) -> None:
    config = GPTConfig.from_dict(json.loads((fp32 / "gptx.json").read_text())["gpt_config"])
    expected = load_model(checkpoint).state_dict()
    for name, value in load_gpt(fp32, config).state_dict().items():
        assert (value == expected[name]).all(), name


@pytest.mark.parametrize("to", ["int8", "int8-channels", "int4"])
def test_the_graph_computes_with_the_rounded_weights(
    quantized: dict[str, Path], fp32: Path, to: str
) -> None:
    """The graph equals PyTorch with the same rounded weights, up to the rounding of activations."""
    manifest = read_manifest(fp32)
    config = GPTConfig.from_dict(manifest.raw["gpt_config"])
    gpt = load_gpt(fp32, config)
    # the layers get the rounded values
    made = quantize_weights(
        gpt, SCHEMES[scheme_name(to, cpu_features())], own_windows(fp32, config)
    )
    head = made.weights["head"]
    assert isinstance(head, BlockWeights)
    gpt.head.weight.copy_(torch.from_numpy(dequantize_blocks(head)))
    text = list(range(60))
    with torch.no_grad():
        expected = gpt(torch.tensor([text]))[0].numpy()
    with gptx.load(quantized[to]) as model:
        got = forced_logits(model, text)
    assert np.abs(got - expected).mean() < 0.02 * np.abs(expected).mean()


@pytest.mark.parametrize(
    ("scheme", "activation"),
    [
        ("int8-channels", "relu"),
        ("int4", "swiglu"),
        pytest.param("int8-blocks", "swiglu", marks=pytest.mark.wide),
        pytest.param("int4", "relu", marks=pytest.mark.wide),
    ],
)
def test_exact_activations_in_the_graph(scheme: str, activation: str, tmp_path: Path) -> None:
    """Activations in 16 bits, or with 4-bit weights in fp32.

    relu makes rows of zeros, which have no largest value to be scaled by.
    """
    config = GPTConfig(
        vocab_size=97, n_ctx=32, n_layer=1, n_head=2, n_embd=32, activation=activation
    )  # type: ignore[arg-type]
    exported = tmp_path / "fp32"
    export_checkpoint(save(config, tmp_path / "checkpoint"), exported)
    gpt = load_gpt(exported, config)
    gpt.blocks[0].mlp.up.weight[:] = 0.0
    rounded, moments = round_layers(gpt, [list(range(20))], SCHEMES[scheme].grid_for)
    head = tables(gpt, Form(exact=True, moments=moments))["head"]
    gpt.head.weight[:] = values_of(head)
    with torch.no_grad():
        expected = gpt(torch.arange(12)[None])[0].numpy()
    weights = {"head": head, **{name: pack(values, exact=True) for name, values in rounded.items()}}
    write_graphs(gpt, weights, exported)
    for found in logits_of_each_graph(exported, list(range(12))):
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.wide)])
def test_rows_of_rare_tokens_in_4_bits(tied: bool, tmp_path: Path) -> None:
    """Head and embedding with 64 common tokens of 160 equal PyTorch with the stored values."""
    config = GPTConfig(
        vocab_size=160, n_ctx=64, n_layer=1, n_head=2, n_embd=64, position="rope", tied=tied
    )
    exported = tmp_path / "fp32"
    export_checkpoint(save(config, tmp_path / "checkpoint"), exported)
    gpt = load_gpt(exported, config)
    made = tables(gpt, Form(common=64, moments=torch.eye(64)))
    assert isinstance(made["head"], StackedWeights) and (made["head"] is made["wte"]) == tied
    assert [(part.shape[0], part.bits) for part in made["head"].parts] == [(64, 8), (96, 4)]
    before = {name: gpt.get_parameter(f"{name}.weight").clone() for name in made}
    for name, table in before.items():
        weight = made[name]
        off = (values_of(weight) - table).abs() / table.abs().max()
        assert off[:64].max() < 0.01 < off[64:].max() < 0.1
        gpt.get_parameter(f"{name}.weight").copy_(values_of(weight))
    ids = [0, 63, 64, 159, 5, 100]
    with torch.no_grad():
        expected = gpt(torch.tensor([ids]))[0].numpy()
    write_graphs(gpt, made, exported)
    for found in logits_of_each_graph(exported, ids):  # the head's input has 8 bits, too
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_which_tokens_are_common() -> None:
    text = [0] * 60 + [130] * 24 + [300] + [700] * 15
    assert common_tokens([text[:50], text[50:]], 1000) == 320  # 85 of 100 are below 301
    assert common_tokens([text], 400) is None  # that would leave 80 others


@pytest.mark.parametrize("position", ["rope", pytest.param("learned", marks=pytest.mark.wide)])
def test_int4_fast_takes_blocks_of_128_where_they_divide(position: str, tmp_path: Path) -> None:
    config = GPTConfig(
        vocab_size=97, n_ctx=64, n_layer=2, n_head=2, n_embd=128, n_inner=192, position=position
    )  # type: ignore[arg-type]
    export_checkpoint(save(config, tmp_path / "checkpoint"), tmp_path / "fp32")
    quantize_artifact(tmp_path / "fp32", tmp_path / "fast", to="int4-fast", accept=True)
    manifest = read_manifest(tmp_path / "fast")
    quantization = manifest.raw["quantization"]
    assert (manifest.precision, quantization["scheme"]) == ("int4", "int4-fast")
    blocks = {
        name: tensor["block"]
        for name, tensor in quantization["tensors"].items()
        if name.startswith("blocks.1.")
    }
    assert blocks == {
        f"blocks.1.{p}": b
        for p, b in (("attn.qkv", 128), ("attn.out", 128), ("mlp.up", 128), ("mlp.down", 32))
    }
    assert ("wpe" in quantization["tensors"]) == (position == "learned")

    gpt = load_gpt(tmp_path / "fp32", config)
    made = quantize_weights(gpt, SCHEMES["int4-fast"], own_windows(tmp_path / "fp32", config))
    for name, weight in made.weights.items():
        gpt.get_parameter(f"{name}.weight").copy_(values_of(weight))
    text = list(range(60))
    with torch.no_grad():
        expected = gpt(torch.tensor([text]))[0].numpy()
    with gptx.load(tmp_path / "fast") as model:
        assert np.abs(forced_logits(model, text) - expected).mean() < 0.02 * np.abs(expected).mean()
    assert verify(tmp_path / "fast").passed


@pytest.mark.parametrize("to", ["int8", "int8-channels", "int4"])
def test_a_row_does_not_depend_on_the_others(quantized: dict[str, Path], to: str) -> None:
    with gptx.load(quantized[to]) as model:
        options = {"max_new_tokens": 20, "temperature": 0.0}
        alone = [model.generate(prompt, **options).token_ids for prompt in PROMPTS]
        together = [completion.token_ids for completion in model.generate(PROMPTS, **options)]
    assert together == alone


@pytest.mark.parametrize("to", ["int8", "int8-channels", "int4"])
def test_how_a_prompt_is_cut_changes_nothing(quantized: dict[str, Path], to: str) -> None:
    text = list(range(1, 61))
    with gptx.load(quantized[to]) as model:
        whole = forced_logits(model, text)
        with model.session() as session:
            pieces = [
                session.feed([piece], all_logits=True)[0]
                for piece in (text[:2], text[2:31], text[31:])
            ]
    assert (np.concatenate(pieces) == whole).all()


@pytest.mark.parametrize(
    ("features", "scheme"),
    [
        (["avx2"], "int8-blocks"),
        (["avx2", "avx512_vnni"], "int8-blocks"),
        (["avx2", "avx512_vnni", "amx_int8"], "int8-channels"),
        (["neon"], "int8-channels"),
        (["neon", "dotprod"], "int8-blocks"),
    ],
)
def test_int8_depends_on_the_cpu(features: list[str], scheme: str) -> None:
    assert scheme_name("int8", features) == scheme
    assert scheme_name("int8-blocks", features) == "int8-blocks"


@pytest.mark.parametrize("features", [["avx2"], ["avx2", "avx512"]])
def test_without_vnni_channels_are_exact(
    quantized: dict[str, Path], features: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """uint8 times int8 saturates there; gptx selects ONNX Runtime's products that do not."""
    text = list(range(1, 40))
    with gptx.load(quantized["int8-channels"]) as model:
        expected = forced_logits(model, text)
    monkeypatch.setattr("gptx.ort.sessions.cpu_features", lambda: features)
    with gptx.load(quantized["int8-channels"]) as model:
        assert np.abs(forced_logits(model, text) - expected).max() < 1e-4 * np.abs(expected).max()


@given(rows=st.integers(1, 6), blocks=st.integers(1, 4), seed=st.integers(0, 1000))
def test_weights_that_were_4_bit_with_offsets_are_found_again(
    rows: int, blocks: int, seed: int
) -> None:
    weight = q4_1((rows, 32 * blocks), seed)
    found = detect_q4_1(weight)
    assert found is not None
    error = np.abs(dequantize_offsets(found) - weight.numpy())
    step = np.abs(found.blocks.scales[:, :blocks]).max()
    assert (
        error.max() < 0.2 * step and error.mean() < 0.02 * step
    )  # an offset has 8 bits of the row's range
    assert (
        detect_q4_1(weight + 0.003 * torch.randn(weight.shape)) is None
    )  # keeping them would undo a little fine-tuning
    assert detect_q4_1(weight[:, :-1]) is None


def test_such_a_model_keeps_its_weights_in_int4(tmp_path: Path) -> None:
    config = GPTConfig(vocab_size=97, n_ctx=64, n_layer=2, n_head=2, n_embd=64, n_inner=96)
    torch.manual_seed(2)
    save_checkpoint(
        make_q4_1(GPT(config).eval()),
        tmp_path / "checkpoint",
        tokenizer_files=None,
        source={"format": "test"},
        generation=None,
    )
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "fp32")
    certificate = quantize_artifact(tmp_path / "fp32", tmp_path / "int4", to="int4")
    assert certificate["figures"]["kl_mean"] < 1e-4  # what 8-bit activations cost
    quantization = read_manifest(tmp_path / "int4").raw["quantization"]
    assert (
        quantization["rounding"] == "none: the source's own levels" and not quantization["rotated"]
    )


def test_sizes(quantized: dict[str, Path], fp32: Path) -> None:
    full = (fp32 / "onnx" / "model.onnx_data").stat().st_size
    share = {
        to: (path / "onnx" / "model.onnx_data").stat().st_size / full
        for to, path in quantized.items()
    }
    assert share["int4"] < share["int8"] < 0.4 < share["fp16"] < 0.65


def test_fp16_is_close(quantized: dict[str, Path]) -> None:
    certificate = json.loads((quantized["fp16"] / "gptx.json").read_text())["certificate"]
    assert certificate["passed"] and certificate["figures"]["kl_mean"] < 1e-4


def test_the_chain_leads_back_to_pytorch(quantized: dict[str, Path]) -> None:
    chain = json.loads((quantized["int8"] / "gptx.json").read_text())["certificate"]["chain"]
    assert [entry["against"] for entry in chain] == ["pytorch fp32", "artifact fp32", "sum"]
    assert chain[2]["max_abs"] == pytest.approx(chain[0]["max_abs"] + chain[1]["max_abs"])


def test_against_pytorch_itself(fp32: Path, checkpoint: Path, tmp_path: Path) -> None:
    certificate = quantize_artifact(
        fp32, tmp_path / "out", to="int8", checkpoint=checkpoint, accept=True
    )
    assert certificate["against"] == "pytorch fp32" and len(certificate["chain"]) == 1


def test_what_is_quantized_is_not_quantized_again(
    quantized: dict[str, Path], tmp_path: Path
) -> None:
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


def test_verify_sees_a_logit_that_is_no_number_where_no_limit_does(
    quantized: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN logit of a token with probability 0 does not change the KL, int8's only limit."""
    whole = verify(quantized["int8"])
    reference = Reference.load(quantized["int8"], read_manifest(quantized["int8"]).model)
    likely = {*reference.top_ids.ravel().tolist(), *reference.tokens.tolist()}
    unlikely = max(set(range(304)) - likely)
    feed = Session.feed

    def without(session: Session, rows: list[list[int]], **options: Any) -> Any:
        logits = feed(session, rows, **options)
        for row in logits:
            row[..., unlikely] = -np.inf
        return logits

    monkeypatch.setattr(Session, "feed", without)
    with np.errstate(invalid="ignore"):
        rows = {row.name: row for row in verify(quantized["int8"]).rows}
    for row in whole.rows:
        if row.name in ("max_abs", "mean_abs"):
            assert (row.limit, row.ok, rows[row.name].ok) == (None, True, False)
        if row.name in ("kl_mean", "same_top1", "perplexity"):
            assert rows[row.name].ok


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


def test_a_certificate_without_its_limits_proves_nothing(
    quantized: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(quantized["int8"], tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "gptx.json").read_text())
    for limits in ({}, {"kl_mean": "small", "consistency_kl": 1}):
        manifest["certificate"]["limits"] = limits
        (tmp_path / "out" / "gptx.json").write_text(json.dumps(manifest))
        with pytest.raises(ArtifactError, match="no number as the limit of kl_mean"):
            verify(tmp_path / "out")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_leaves_nothing_half_written(fp32: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "gptx",
        "quantize",
        str(fp32),
        str(tmp_path / "out"),
        "--to",
        "int8",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob(".out.*")) and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_dry_run_refuses_what_could_not_be_written(fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = command("quantize", fp32, tmp_path / "file", "--to", "int8", "--dry-run")
    assert (outcome.status, list(tmp_path.iterdir())) == (1, [tmp_path / "file"])
    assert "is a file" in outcome.err


@pytest.mark.parametrize(
    "options",
    [
        ["--text", "no.txt"],
        ["--calibration", "no.txt"],
        ["--checkpoint", "no"],
        ["--picture", "a.jpg"],
        ["--force"],
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    fp32: Path, tmp_path: Path, options: list[str]
) -> None:
    out = fp32 if options == ["--force"] else tmp_path / "out"
    to = ("--budget", "1%") if "--picture" in options else ("--to", "int8")
    dry, real = (command("quantize", fp32, out, *to, *options, *dry) for dry in (["--dry-run"], []))
    assert (dry.status, dry.out) == (real.status, real.out) == (1, b"")
    assert dry.err.splitlines()[-1] == real.err.splitlines()[-1]
