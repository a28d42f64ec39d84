"""A session on native operators, through the public surface of gptx."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import gptx
from builders.exported import CONFIG, write_checkpoint
from builders.native_graphs import native_kernels, native_operators, needs_library
from gpt_export.export import export_checkpoint
from gpt_export.quantization.quantize import quantize_artifact
from gptx.artifact.manifest import read_manifest
from gptx.errors import UsageError
from gptx.ort import native
from gptx.parity.reference import Reference
from gptx.parity.same_bits import check_bits, stated_hashes
from gptx.verify import forced_logits, verify

pytestmark = [needs_library, pytest.mark.usefixtures(native_kernels.__name__)]
TEXT = np.random.default_rng(4).integers(0, 300, 120).tolist()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    write_checkpoint(folder / "checkpoint", CONFIG)
    with native_operators():
        export_checkpoint(folder / "checkpoint", folder / "fp32")
        quantize_artifact(folder / "fp32", folder / "int8", to="int8", accept=True)
    return folder / "int8"


def bits(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits, np.float32).view(np.int32)


def test_a_row_is_the_same_alone_in_pieces_and_in_a_batch(artifact: Path) -> None:
    with gptx.load(artifact, threads=2) as model:
        expected = bits(forced_logits(model, TEXT))
        with model.session() as session:  # grows once, at 128
            steps = [session.feed([[token]])[0] for token in TEXT]
            assert np.array_equal(bits(np.stack(steps)), expected)
            session.rewind([40])
            again = session.feed([TEXT[40:]], all_logits=True)[0]
            assert np.array_equal(bits(again), expected[40:])
        with model.session(3) as session:
            session.feed([TEXT[:30], TEXT[:7], TEXT[:1]])
            session.feed([[], TEXT[7:50], []])
            logits = session.feed([TEXT[30:31], TEXT[50:52], TEXT[1:2]])
            places = [30, 51, 1]
            assert np.array_equal(bits(logits), expected[places])


def test_native_is_as_near_to_the_reference_as_onnx_runtime(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = verify(artifact)
    monkeypatch.setenv(native.VARIABLE, "none")
    there = verify(artifact)
    assert (here.graph, there.graph) == ("onnx/step.onnx", "onnx/model.onnx")
    assert here.passed and there.passed
    found, other = ({row.name: row.here for row in report.rows} for report in (here, there))
    assert found["cached"] == found["pieces"] == found["batch"] == 0
    assert found["kl_mean"] < 1.2 * other["kl_mean"]


@pytest.mark.parametrize("kernels", ["plain", ""])
def test_verify_says_that_the_logits_are_identical_to_the_bit(
    kernels: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels:
        monkeypatch.setenv(native.VARIABLE, kernels)
    report = verify(artifact)
    (check,) = (check for check in report.checks if check.name == "native bits")
    assert check.ok and "identical to the bit" in check.what


def test_other_bits_are_judged_by_the_limits(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    reference = Reference.load(artifact, manifest.model)
    stated = stated_hashes(manifest)
    checks, notes = check_bits(stated, [*stated[:-1], "0"], reference)
    assert not checks and "differ in bits" in notes[0]
    assert f"behind {reference.windows[-1, 0]:,} of" in notes[0]


def test_weights_are_stored_once(artifact: Path) -> None:
    names = ("model.onnx_data", "step.onnx")
    data, step = ((artifact / "onnx" / name).stat().st_size for name in names)
    rotation = 2 * CONFIG.n_embd**2  # which model.onnx does not have
    assert step - rotation < 0.2 * data


def test_two_threads_share_a_model(artifact: Path) -> None:
    with gptx.load(artifact, threads=2) as model:
        expected = bits(forced_logits(model, TEXT))
        found: list[np.ndarray] = []

        def feed() -> None:
            with model.session() as session:
                for start in range(0, 120, 10):
                    part = session.feed([TEXT[start : start + 10]], all_logits=True)[0]
                    found.append(bits(part) - expected[start : start + 10])

        threads = [threading.Thread(target=feed) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 48 and not any(part.any() for part in found)


@pytest.mark.parametrize(
    ("name", "says"),
    [("sse9", "expected none or one of"), ("neon", "does not have them")],
)
def test_kernels_that_do_not_exist_are_one_sentence(
    name: str, says: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "neon" and native.choose_kernels(1) in ("neon", "neondot"):
        pytest.skip("this processor has them")
    monkeypatch.setenv(native.VARIABLE, name)
    with pytest.raises(UsageError, match=says):
        gptx.load(artifact)


@pytest.mark.parametrize(("platform", "says"), [("linux", ""), ("darwin", "; untested on macOS")])
def test_doctor_calls_other_systems_untested(
    platform: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = native.choose_kernels(1)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(native, "choose_kernels", lambda threads: kernels)
    assert native.describe() == f"{kernels}{says}"


SCRIPT = """
import hashlib, os, sys
import gptx
def digest():
    model = gptx.load(sys.argv[1], threads=2)
    with model.session() as session:
        found = session.feed([list(range(100))], all_logits=True)[0]
    model.close()
    return hashlib.sha256(found.tobytes()).hexdigest()
print(digest())
"""


@pytest.mark.parametrize(
    "more",
    [
        "print(digest())",  # loaded again, after the last session is gone
        "import torch; assert torch.set_flush_denormal(True); print(digest())",
        "import ctypes; ctypes.CDLL('libm.so.6').fesetround(0x800); print(digest())",
        """
child = os.fork()
if not child:
    print(digest(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
""",
    ],
    ids=["again", "flush to zero", "rounding up", "fork"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="fork, and names of Linux")
def test_a_process_gets_the_same_bits(more: str, artifact: Path) -> None:
    command = [sys.executable, "-c", SCRIPT + more, str(artifact)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second
