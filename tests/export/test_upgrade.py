"""gptx upgrade: it adds the step graph that export would have written, or leaves all as it was."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

import gptx
from builders.exported import CONFIG, write_checkpoint
from builders.four_bit_weights import make_q4_1
from builders.gptx_command import gptx as command
from builders.hub_cache import as_in_the_cache
from builders.native_graphs import native_kernels, needs_library
from builders.older_artifact import without_step_graph
from builders.random_gpt import random_gpt
from gpt_export import upgrade
from gpt_export.export import export_checkpoint
from gpt_export.mixed_precision import timing
from gpt_export.mixed_precision.budget import Budget
from gpt_export.mixed_precision.search import quantize_within
from gpt_export.quantization.quantize import quantize_artifact
from gptx.artifact.layout import STEP
from gptx.errors import OutputError, ParityError
from gptx.ort import native
from gptx.verify import verify
from gptx_models.checkpoints.checkpoint import save_checkpoint

pytestmark = [needs_library, pytest.mark.usefixtures(native_kernels.__name__)]
# Another form of cache, whose head is stored transposed; grouped rotary attention, gates.
GROWING = dataclasses.replace(
    CONFIG,
    n_kv_head=2,
    position="rope",
    activation="swiglu",
    norm="rmsnorm",
    attn_bias=False,
    mlp_bias=False,
    tied=False,
)


def made_in_a_budget(fp32: Path, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "milliseconds", lambda weights, natively: 1.0)  # a second each
        quantize_within(fp32, out, budget=Budget(size=210_000), accept=True)


def made_of_q4_1(folder: Path) -> None:
    checkpoint, fp32 = (folder.with_name(f"q4_1-{name}") for name in ("checkpoint", "fp32"))
    gpt = make_q4_1(random_gpt(CONFIG))
    save_checkpoint(gpt, checkpoint, tokenizer_files=None, source={}, generation=None)
    export_checkpoint(checkpoint, fp32)
    quantize_artifact(fp32, folder, to="int4", accept=True)


def made_in_the_growing_form(folder: Path) -> None:
    write_checkpoint(folder.with_name("growing-checkpoint"), GROWING)
    export_checkpoint(folder.with_name("growing-checkpoint"), folder, cache="growing")


@pytest.fixture(
    params=[
        "fp32",
        "growing fp32",
        "int8",
        "int8-channels",
        "int4",
        "int4 of Q4_1",
        "int4-fast",
        "fp16",
        "mix",
    ]
)
def artifact(
    request: pytest.FixtureRequest, pipeline: Path, fp32: Path, quantized: dict[str, Path]
) -> Path:
    """An artifact of this kind, as gptx makes it today."""
    kind: str = request.param
    made: dict[str, Callable[[Path], object]] = {
        "growing fp32": made_in_the_growing_form,
        "int4-fast": lambda out: quantize_artifact(fp32, out, to="int4-fast", accept=True),
        "int4 of Q4_1": made_of_q4_1,
        "mix": lambda out: made_in_a_budget(fp32, out),
    }
    if kind not in made:
        return {"fp32": fp32, **quantized}[kind]
    out = pipeline / f"upgrade-{kind}"
    with FileLock(f"{out}.lock"):
        if not out.exists():
            made[kind](out)
    return out


@pytest.fixture
def older(fp32: Path, tmp_path: Path) -> Path:
    """An fp32 artifact without a step graph."""
    return without_step_graph(fp32, tmp_path / "older")


def contents(folder: Path) -> dict[str, bytes | str]:
    """All files and links, at any depth."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_the_graph_is_the_one_that_the_maker_would_have_written(
    artifact: Path, tmp_path: Path
) -> None:
    older = without_step_graph(artifact, tmp_path / "older")
    before = contents(older)
    upgrade.upgrade_artifact(older, accept=True)
    now = contents(older)
    assert now.keys() - before.keys() == {STEP}
    assert now[STEP] == (artifact / STEP).read_bytes()
    changed = {name for name in before if now[name] != before[name]}
    assert changed <= {"gptx.json", "gptx_reference.safetensors", "README.md"}


def test_an_upgraded_artifact_is_whole(older: Path) -> None:
    outcome = command("upgrade", older)
    assert outcome.status == 0, outcome.err
    assert f"{STEP} is added" in outcome.text
    report = verify(older)
    assert report.passed and report.graph == STEP
    raw = json.loads((older / "gptx.json").read_text("utf-8"))
    assert (raw["step"], raw["kernel_order"]) == (STEP, native.KERNEL_ORDER)
    with gptx.load(older) as model:
        assert model.kernels == raw["upgraded"]["kernels"]
    size = sum(file.stat().st_size for file in (older / "onnx").iterdir())
    card = (older / "README.md").read_text("utf-8")
    assert f"| graph and weights | {size / 1e6:,.1f} MB" in card


def damaged(folder: Path) -> None:
    data = folder / "onnx" / "model.onnx_data"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])


def of_optimum(folder: Path) -> None:
    raw = json.loads((folder / "gptx.json").read_text("utf-8"))
    del raw["gpt_config"]
    (folder / "gptx.json").write_text(json.dumps(raw), "utf-8")


@pytest.mark.parametrize(
    ("edit", "says"), [(damaged, "onnx/model.onnx_data has sha256"), (of_optimum, "optimum")]
)
def test_other_artifacts_are_refused(edit: Callable[[Path], None], says: str, older: Path) -> None:
    edit(older)
    refused(older, says)


def test_an_artifact_with_a_step_graph_is_refused(fp32: Path) -> None:
    refused(fp32, "has a step graph already")


def test_a_machine_that_cannot_prove_it_is_refused(
    older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.VARIABLE, "none")
    refused(older, "GPTX_KERNELS is none")
    monkeypatch.delenv(native.VARIABLE)
    monkeypatch.setattr(native, "_load", lambda: "the library is not built")
    refused(older, "library is not built")


def refused(folder: Path, says: str) -> None:
    """One sentence, status 1, and nothing is changed."""
    before = contents(folder)
    outcome = command("upgrade", folder)
    assert outcome.status == 1 and outcome.out == b""
    assert says in outcome.err and len(outcome.err.splitlines()) == 1
    assert contents(folder) == before


def test_a_step_graph_outside_the_limits_is_not_added(older: Path) -> None:
    raw = json.loads((older / "gptx.json").read_text("utf-8"))
    raw["certificate"]["limits"]["max_abs"] = raw["certificate"]["limits"]["relative"] = 0
    (older / "gptx.json").write_text(json.dumps(raw), "utf-8")
    before = contents(older)
    with pytest.raises(ParityError, match="nothing was written"):
        upgrade.upgrade_artifact(older)
    assert contents(older) == before


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["rename", "replace"])
def test_a_failure_at_the_last_moment_changes_nothing(
    name: str, fault: BaseException, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the renames, the first that fails is that of the reference."""
    real, before = getattr(os, name), contents(older)
    failed: list[str] = []

    def fails_once(source: str, target: str) -> None:
        if (
            Path(target) in (older / "gptx_reference.safetensors", older / "gptx.json")
            and not failed
        ):
            failed.append(str(target))
            raise fault
        real(source, target)

    monkeypatch.setattr(upgrade.os, name, fails_once)
    with pytest.raises(OutputError if isinstance(fault, OSError) else KeyboardInterrupt):
        upgrade.upgrade_artifact(older)
    assert failed and contents(older) == before


def test_a_folder_that_changes_meanwhile_is_left_alone(
    older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_edited(folder: Path) -> object:
        report = verify(folder)
        with (older / "gptx.json").open("a") as file:
            file.write("\n")
        return report

    monkeypatch.setattr(upgrade, "verify", then_edited)
    refused_names = contents(older).keys()
    outcome = command("upgrade", older)
    assert outcome.status == 1 and "was changed while it was upgraded" in outcome.err
    assert contents(older).keys() == refused_names


def test_a_disk_without_hard_links(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(upgrade.os, "link", none)
    upgrade.upgrade_artifact(older)
    assert verify(older).graph == STEP


def test_the_cache_of_the_hub_is_refused(older: Path, tmp_path: Path) -> None:
    refused(as_in_the_cache(older, tmp_path / "cache"), "consists of links")


def test_the_cache_of_the_hub_runs_the_step_graph(fp32: Path, tmp_path: Path) -> None:
    snapshot = as_in_the_cache(fp32, tmp_path / "cache")
    assert verify(snapshot).graph == STEP
