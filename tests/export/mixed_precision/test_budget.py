"""gptx quantize --budget: parsing, the measured mixes, the chosen artifact, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders.four_bit_weights import q4_1
from builders.gptx_command import gptx as command
from builders.native_graphs import native_kernels, needs_library
from gpt_export.export import export_checkpoint
from gpt_export.graph.layers import Quantized
from gpt_export.mixed_precision import timing
from gpt_export.mixed_precision.budget import STEPS, Budget, parse_budget, smallest_inside, spaced
from gpt_export.mixed_precision.mix import TABLES
from gpt_export.mixed_precision.search import quantize_within
from gpt_export.quantization.blocks import StackedWeights, pack_blocks
from gpt_export.quantization.gptq import Grid, round_nearest
from gpt_export.quantization.offsets import OffsetWeights, detect_q4_1
from gpt_export.quantization.recipes import pack
from gptx.errors import UsageError
from gptx.ort import native
from gptx.verify import verify
from gptx_models.checkpoints.checkpoint import save_checkpoint
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

REAL = timing.milliseconds
PNG = b"\x89PNG\r\n"


@pytest.fixture(autouse=True, scope="module")
def quick_timing() -> Any:
    """Replace the timing of products, a second each, by a number that depends on the bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            timing,
            "milliseconds",
            lambda weights, natively: float(getattr(weights[0], "bits", 8)),
        )
        yield


@pytest.fixture(scope="module")
def kept(fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in a budget of perplexity that the smallest mix exceeds."""
    out = tmp_path_factory.mktemp("budget") / "out"
    outcome = command("quantize", fp32, out, "--budget", "ppl=+0.7%")
    assert outcome.status == 0, outcome.err
    out.with_name("printed.txt").write_text(outcome.text)
    return out


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gptx.json").read_text())


def layer_bits(artifact: Path) -> list[int]:
    tensors = manifest_of(artifact)["quantization"]["tensors"]
    return [tensor["bits"] for name, tensor in tensors.items() if name.startswith("blocks.")]


def graph_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "onnx").iterdir())


@pytest.mark.parametrize("form", ["ppl=+{}%", "+{}%", "{}%", "ppl = {} %", "PPL={}%"])
@given(percent=st.decimals(0, 1000, places=3, allow_nan=False))
def test_budgets_of_perplexity(form: str, percent: Any) -> None:
    assert parse_budget(form.format(percent)) == Budget(perplexity=float(percent) / 100)


@pytest.mark.parametrize("form", ["size={}{}", "{}{}", "{} {}", " size = {} {} "])
@given(
    number=st.decimals(1, 100_000, places=2),
    unit=st.sampled_from(["MB", "mb", "kB", "GB", "MiB", "GiB"]),
)
def test_budgets_of_size(form: str, number: Any, unit: str) -> None:
    bytes_of = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "mib": 2**20, "gib": 2**30}
    assert parse_budget(form.format(number, unit)) == Budget(
        size=int(float(number) * bytes_of[unit.lower()])
    )


@given(st.text())
def test_anything_else_is_one_sentence(text: str) -> None:
    try:
        budget = parse_budget(text)
    except UsageError as error:
        assert "ppl=+0.5%" in str(error) and "size=100MB" in str(error)
    else:
        assert (budget.perplexity is None) != (budget.size is None)


@pytest.mark.parametrize(
    "text",
    ["", "5", "-0.5%", "ppl=5MB", "size=5%", "0MB", "1e3MB", "nan%", "9" * 400 + "GB", "5 TB"],
)
def test_no_budget(text: str) -> None:
    with pytest.raises(UsageError):
        parse_budget(text)


@given(top=st.integers(1, 300), threshold=st.integers(0, 301))
def test_the_search_closes_in_on_the_smallest_mix(top: int, threshold: int) -> None:
    tried: list[int] = []

    def inside(count: int) -> bool:
        tried.append(count)
        return count >= threshold

    smallest_inside(top, inside)
    assert {0, top} <= set(tried) and len(tried) == len(set(tried)) <= len(spaced(top)) + STEPS
    if 0 < threshold <= top:
        best, below = (
            min(n for n in tried if n >= threshold),
            max(n for n in tried if n < threshold),
        )
        assert best - below <= max(1, -(-top // 4) // 2**STEPS + 1)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 90)),
    grid=st.sampled_from(
        [Grid(8), Grid(8, 64), Grid(4, 32), Grid(4, 32, symmetric=False), Grid(4, 64, False, 8)]
    ),
)
def test_bytes_are_known_before_rounding(shape: tuple[int, int], grid: Grid) -> None:
    fitted = grid.fitted(shape[1])
    packed: Quantized = pack(round_nearest(torch.ones(shape), fitted))
    arrays = [
        getattr(packed, name, None)
        for name in ("packed", "levels", "scales", "zeros", "scale_steps")
    ]
    assert fitted.stored_bytes(*shape) == sum(array.nbytes for array in arrays if array is not None)


def test_the_perplexity_is_kept(kept: Path) -> None:
    figures = manifest_of(kept)["certificate"]["figures"]
    assert figures["perplexity"] / figures["perplexity_reference"] <= 1.007
    assert verify(kept).passed


def test_more_bits_are_larger_and_nearer(kept: Path) -> None:
    points = manifest_of(kept)["quantization"]["pareto"]["points"]
    assert len(points) >= 5
    sizes, predicted = [p["bytes"] for p in points], [p["predicted_kl"] for p in points]
    assert sizes == sorted(sizes) and predicted == sorted(predicted, reverse=True)
    assert [p["mix"] for p in points][:: len(points) - 1] == [
        "6 in 4/64, 2 in 4/128",
        "8 in 8 bits",
    ]
    for point in points:  # the sum of single layers predicts the whole
        assert point["predicted_kl"] == pytest.approx(point["kl_mean"], rel=0.3)


def test_the_manifest_says_what_was_done(kept: Path, fp32: Path) -> None:
    manifest = manifest_of(kept)
    quantization = manifest["quantization"]
    (chosen,) = [point for point in quantization["pareto"]["points"] if point["chosen"]]
    assert quantization["scheme"] == "mix" and quantization["budget"] == "perplexity +0.7%"
    assert quantization["mix"] == chosen["mix"] and chosen["bytes"] == graph_size(
        kept
    ) < graph_size(fp32)
    bits = layer_bits(kept)
    assert len(bits) == 8 and manifest["precision"] == ("int4" if bits.count(8) < 4 else "int8")
    assert set(quantization["sensitivity"]) == set(quantization["tensors"]) - {
        "head",
        "wte.inner",
        "wpe",
    } | {TABLES}
    assert f"{chosen['mix']}, the best inside perplexity +0.7%" in (kept / "README.md").read_text()


def test_pytorch_foretells_the_certificate(kept: Path) -> None:
    manifest = manifest_of(kept)
    (chosen,) = [point for point in manifest["quantization"]["pareto"]["points"] if point["chosen"]]
    assert chosen["kl_mean"] == pytest.approx(
        manifest["certificate"]["figures"]["kl_mean"], rel=0.2
    )


def test_table_and_picture(kept: Path) -> None:
    printed = kept.with_name("printed.txt").read_text()
    (marked,) = [line for line in printed.splitlines() if line.startswith(">  ")]
    assert manifest_of(kept)["quantization"]["mix"] in marked
    operators = manifest_of(kept)["quantization"]["pareto"]["operators"]
    assert f"timed here on {operators}, without attention" in printed
    assert ("native operators" in operators) == native.available()
    picture = kept.with_name("out-pareto.png")
    assert picture.read_bytes().startswith(PNG) and str(picture) in printed
    assert sorted(path.name for path in kept.parent.iterdir()) == [
        "out",
        "out-pareto.png",
        "printed.txt",
    ]


def test_the_size_is_kept(fp32: Path, kept: Path, tmp_path: Path) -> None:
    points = manifest_of(kept)["quantization"]["pareto"]["points"]
    size = (points[0]["bytes"] + points[-1]["bytes"]) // 2
    quantize_within(
        fp32, tmp_path / "out", budget=Budget(size=size), picture_file=tmp_path / "mixes.png"
    )
    assert graph_size(tmp_path / "out") <= size
    bits = layer_bits(tmp_path / "out")
    assert set(bits) == {4, 8}
    assert manifest_of(tmp_path / "out")["quantization"]["mix"].startswith(
        f"{bits.count(8)} in 8 bits, "
    )
    pareto = manifest_of(tmp_path / "out")["quantization"]["pareto"]["points"]
    fitting = [
        point for point in pareto if point["bytes"] <= size - 4000
    ]  # the graph's own size is an estimate at first
    assert min(fitting, key=lambda point: point["kl_mean"])["chosen"]
    assert (tmp_path / "mixes.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("options", "words"),
    [(["size=10kB"], "is too small"), (["1%", "--limit", "kl_mean=1e-12"], "nothing was written")],
)
def test_a_budget_that_cannot_be_kept(
    fp32: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    outcome = command("quantize", fp32, tmp_path / "out", "--budget", *options)
    assert outcome.status == 1 and words in outcome.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [["size=10kB"], ["5MB", "--limit", "perplexty=3"], ["size=10kB", "--calibration", "no"]],
)
def test_a_dry_run_refuses_what_the_run_would(
    fp32: Path, tmp_path: Path, options: list[str]
) -> None:
    dry, real = (
        command("quantize", fp32, tmp_path / "out", "--budget", *options, *dry)
        for dry in (["--dry-run"], [])
    )
    assert (dry.status, dry.out) == (real.status, real.out) == (1, b"")
    assert dry.err.splitlines()[-1] == real.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_knows_the_smallest_mix(fp32: Path, kept: Path, tmp_path: Path) -> None:
    """The graph file is a large part of this model, so its size must be counted, too."""
    smallest = manifest_of(kept)["quantization"]["pareto"]["points"][0]["bytes"]
    said = [
        command("quantize", fp32, tmp_path / "out", "--budget", f"{size}B", "--dry-run")
        for size in (smallest // 2, 2**20)
    ]
    assert (said[0].status, said[1].status) == (1, 0) and "is too small" in said[0].err
    assert said[1].text.startswith("parameters")


def test_weights_that_were_4_bit_before_are_a_mix_of_their_own(tmp_path: Path) -> None:
    config = GPTConfig(vocab_size=97, n_ctx=64, n_layer=1, n_head=2, n_embd=64, n_inner=96)
    torch.manual_seed(2)
    gpt = GPT(config).eval()
    with torch.no_grad():
        for name, parameter in gpt.blocks.named_parameters():
            if parameter.dim() == 2:
                parameter.copy_(q4_1((parameter.shape[0], parameter.shape[1]), len(name)) * 0.3)
    save_checkpoint(
        gpt,
        tmp_path / "checkpoint",
        tokenizer_files=None,
        source={"format": "test"},
        generation=None,
    )
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "fp32")
    quantize_within(tmp_path / "fp32", tmp_path / "out", budget=Budget(size=10**6))
    points = manifest_of(tmp_path / "out")["quantization"]["pareto"]["points"]
    (own,) = [point for point in points if "4 bits" in point["mix"]]
    assert own["chosen"] and own["kl_mean"] < 1e-4  # next to nothing is lost


def test_a_classifier_has_a_size_alone(tmp_path: Path) -> None:
    config = GPTConfig(vocab_size=97, n_ctx=64, n_layer=1, n_head=2, n_embd=32, n_class=3)
    torch.manual_seed(2)
    gpt = GPT(config).eval()
    save_checkpoint(
        gpt,
        tmp_path / "checkpoint",
        tokenizer_files=None,
        source={"format": "test"},
        generation=None,
    )
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "fp32")
    outcome = command("quantize", tmp_path / "fp32", tmp_path / "out", "--budget", "1%")
    assert (
        outcome.status == 1
        and "no perplexity" in outcome.err
        and len(outcome.err.splitlines()) == 1
    )
    assert (
        command("quantize", tmp_path / "fp32", tmp_path / "out", "--budget", "1%", "--dry-run")
        == outcome
    )
    outcome = command("quantize", tmp_path / "fp32", tmp_path / "out", "--budget", "1MB")
    assert outcome.status == 0 and "nan" not in outcome.text
    points = manifest_of(tmp_path / "out")["quantization"]["pareto"]["points"]
    assert all(point["perplexity"] is None and point["kl_mean"] >= 0 for point in points)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ([], 2, "--budget"),
        (["--to", "int4", "--budget", "5MB"], 2, "either --to"),
        (["--to", "int4", "--picture", "a.png"], 1, "--picture"),
        (["--budget", "tiny"], 1, "size=100MB"),
        (["--budget", "5MB", "--limit", "perplexty=3"], 1, "perplexty"),
    ],
)
def test_options_that_make_no_sense(
    fp32: Path, tmp_path: Path, options: list[str], status: int, words: str
) -> None:
    outcome = command("quantize", fp32, tmp_path / "out", *options)
    assert outcome.status == status and words in outcome.err and len(outcome.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_exists_is_not_replaced(fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "out-pareto.png").write_bytes(b"mine")
    outcome = command("quantize", fp32, tmp_path / "out", "--budget", "5MB")
    assert outcome.status == 1 and "--force" in outcome.err
    assert (tmp_path / "out-pareto.png").read_bytes() == b"mine" and not (tmp_path / "out").exists()


FORMS: dict[str, Callable[[], Quantized]] = {
    "blocks": lambda: pack(round_nearest(WEIGHT, Grid(4, 32, symmetric=False, scale_bits=8))),
    "two terms": lambda: pack(round_nearest(WEIGHT, Grid(8, 32)), exact=True),
    "floats": lambda: pack(round_nearest(WEIGHT, Grid(4, 32)), exact=True),
    "channels": lambda: pack(round_nearest(WEIGHT, Grid(8))),
    "rare tokens": lambda: StackedWeights(
        tuple(pack_blocks(round_nearest(WEIGHT, Grid(bits, 32))) for bits in (8, 4))
    ),
    "offsets": lambda: exactly(detect_q4_1(q4_1((32, 64), 0))),
}
WEIGHT = torch.randn(32, 64)


def exactly(found: OffsetWeights | None) -> OffsetWeights:
    assert found is not None
    return found.exact()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("natively", [False, pytest.param(True, marks=needs_library)])
@pytest.mark.usefixtures(native_kernels.__name__)
def test_products_are_timed(form: str, natively: bool) -> None:
    assert 0 < REAL([FORMS[form]()] * 2, natively=natively) < 1000


def test_what_is_timed_is_what_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPTConfig(vocab_size=97, n_ctx=64, n_layer=1, n_head=2, n_embd=64)
    asked: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            timing, "milliseconds", lambda weights, natively: asked.append(natively) or 1.0
        )
        for kernels in ("", "none"):
            patch.setenv(native.VARIABLE, kernels)
            timings = timing.Timings(config)
            timings.time([FORMS["blocks"]()])
            built = kernels != "none" and native.library() is not None
            assert ("native operators" in timings.operators) == built == asked.pop()
    assert asked == []


def test_forms_of_one_shape_have_times_of_their_own() -> None:
    kinds = {timing.kind_of_weight(FORMS[name]()) for name in ("floats", "offsets", "blocks")}
    assert len(kinds) == 3
