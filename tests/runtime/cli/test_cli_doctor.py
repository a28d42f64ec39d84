"""gptx doctor: versions, providers that load, conflicts, and the tiny model it tries them with."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from builders.gptx_command import gptx
from gptx import doctor
from gptx.install import NAME


def test_the_identity_model_is_what_onnx_writes() -> None:
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "gptx", [x], [y])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    onnx.checker.check_model(model, full_check=True)
    assert model.SerializeToString(deterministic=True) == doctor.IDENTITY_MODEL


def test_a_sound_machine() -> None:
    outcome = gptx("doctor")
    assert outcome.status == 0 and "no problems" in outcome.text
    assert "CPUExecutionProvider" in outcome.text and "loads" in outcome.text
    facts = json.loads(gptx("doctor", "--json").text)
    assert facts["versions"]["numpy"] == importlib.metadata.version("numpy")
    assert {"name": "CPUExecutionProvider", "loads": True, "reason": ""} in facts["providers"]
    assert facts["problems"] == [] and facts["cores"] >= 1


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_load(tmp_path: Path) -> None:
    import onnxruntime

    model = tmp_path / "identity.onnx"
    model.write_bytes(doctor.IDENTITY_MODEL)
    for name in ("CUDAExecutionProvider", "NoSuchExecutionProvider"):
        if name in onnxruntime.get_available_providers():
            continue
        tried = doctor.try_provider(onnxruntime, name, model)
        assert not tried.loads and tried.reason and "\n" not in tried.reason
    model.write_bytes(b"not a model")
    assert not doctor.try_provider(onnxruntime, "CPUExecutionProvider", model).loads


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Pretend versions of distributions (None: not installed); write _ for - in their names."""
    real = doctor.installed
    named = {name.replace("_", "-"): number for name, number in versions.items()}
    monkeypatch.setattr(
        doctor, "installed", lambda name: named[name] if name in named else real(name)
    )


def test_both_onnxruntimes(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    outcome = gptx("doctor")
    assert outcome.status == 1
    assert "onnxruntime and onnxruntime-gpu are both installed" in outcome.text
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in outcome.text
    assert "onnxruntime 1.32.0, onnxruntime-gpu 1.31.1" in gptx("--version").text


def test_no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, **{name: None for name in doctor.ORT_DISTRIBUTIONS})
    outcome = gptx("doctor", "--json")
    facts = json.loads(outcome.text)
    assert (
        outcome.status == 1
        and facts["versions"]["onnxruntime"] is None
        and facts["providers"] == []
    )
    assert "[cpu]" in facts["problems"][0] and "[cuda]" in facts["problems"][0]
    assert "no onnxruntime" in doctor.version_line()


def test_an_onnxruntime_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    facts = doctor.examine()
    assert facts.providers == [] and "1.20.1 is too old" in facts.problems[0]


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tokenizers=None)
    outcome = gptx("doctor")
    assert outcome.status == 1 and "tokenizers is missing" in outcome.text


def test_the_other_gptx(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = NAME
    monkeypatch.setattr(
        importlib.metadata, "packages_distributions", lambda: {"gptx": [ours, "other"]}
    )
    assert any("pip uninstall other" in problem for problem in doctor.examine().problems)
