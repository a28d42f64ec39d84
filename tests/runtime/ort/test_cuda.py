"""CUDA: the graph that fp16 artifacts have for it, and what the runtime does with it.

Most tests use pretend_cuda, which computes on the CPU. With `-m gpu` the tests run on a real GPU.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import gptx
from builders.exported import CONFIG, write_checkpoint
from builders.pretend_cuda import pretend_cuda
from builders.tiny_artifact import write_artifact
from gpt_export.export import export_checkpoint
from gpt_export.quantization.quantize import quantize_artifact
from gptx.artifact.hashes import check_hashes
from gptx.artifact.manifest import read_manifest
from gptx.errors import ArtifactError, GptxError, ProviderError
from gptx.inspect import describe
from gptx.kv_cache import cuda as cuda_cache
from gptx.ort import open_sessions
from gptx.ort.cuda import left_to_the_cpu
from gptx.ort.device import CPU, CUDA
from gptx.verify import forced_logits, verify

LLAMA = dataclasses.replace(
    CONFIG,
    n_kv_head=2,
    position="rope",
    activation="swiglu",
    norm="rmsnorm",
    attn_bias=False,
    mlp_bias=False,
)
# The logits are at most 3 and computed in fp16: on an H100 they differed from the CPU's by 0.0042.
TOLERANCE = 1e-2
TEXT = [5, 6, 7, 8, 9, 10, 11, 40, 100, 3, 80, 220, 17, 31]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_checkpoint(folder / "checkpoint", LLAMA)
    export_checkpoint(folder / "checkpoint", folder / "fp32")
    quantize_artifact(folder / "fp32", folder / "fp16", to="fp16", accept=True)
    return folder / "fp16"


@pytest.fixture(params=["gpt2", pytest.param("llama", marks=pytest.mark.wide)])
def fp16(request: pytest.FixtureRequest, quantized: dict[str, Path]) -> Path:
    return quantized["fp16"] if request.param == "gpt2" else request.getfixturevalue("llama")


@contextmanager
def real_cuda(**_: object) -> Iterator[None]:
    """The machine's own CUDA, in place of `pretend_cuda`."""
    yield


cuda = pytest.mark.parametrize(
    "cuda", [pretend_cuda, pytest.param(real_cuda, marks=pytest.mark.gpu)]
)


def test_the_graph_for_cuda(fp16: Path) -> None:
    """It has no attention bias, no operators that prevent capturing, and no weights of its own.

    A bias would keep ONNX Runtime from its fast attention on CUDA.
    """
    manifest = read_manifest(fp16)
    check_hashes(manifest)
    assert manifest.cuda == fp16 / "onnx/cuda.onnx"
    graph = onnx.load(manifest.cuda, load_external_data=False).graph
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert len(attentions) == manifest.model.n_layer
    assert all(len(node.input) <= 9 for node in attentions)  # the tenth is attention_bias
    assert not {"Neg", "ReduceMax", "ReduceSum", "Range", "Where"} & {
        node.op_type for node in graph.node
    }
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) > 1]
    assert weights and all(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in weights)
    assert ("cuda graph", "onnx/cuda.onnx, to be proved by gptx verify --device cuda") in describe(
        fp16
    ).facts


def test_other_recipes_have_none(quantized: dict[str, Path], fp32: Path) -> None:
    assert [read_manifest(path).cuda for path in (fp32, quantized["int8"], quantized["int4"])] == [
        None
    ] * 3


@cuda
@pytest.mark.parametrize("capturing", [True, False])
def test_the_graph_for_cuda_computes_the_same(fp16: Path, capturing: bool, cuda: Any) -> None:
    with gptx.load(fp16, threads=1) as model:
        expected = forced_logits(model, TEXT)
    with (
        cuda(capturing=capturing) as opened,
        gptx.load(fp16, device="cuda", threads=1) as model,
    ):
        assert model.graph == fp16 / "onnx/cuda.onnx"
        assert opened in (None, [fp16 / "onnx/cuda.onnx"])
        np.testing.assert_allclose(forced_logits(model, TEXT), expected, atol=TOLERANCE)
        with model.session(3) as session:
            lengths = [6, 1, 9]
            steps = [session.feed([TEXT[:n] for n in lengths])]
            steps += [session.feed([[TEXT[n + step]] for n in lengths]) for step in range(4)]
        for step, logits in enumerate(steps):
            np.testing.assert_allclose(
                logits, expected[[n + step - 1 for n in lengths]], atol=TOLERANCE
            )


def test_verify_says_which_graph_it_proved(fp16: Path) -> None:
    with pretend_cuda():
        report = verify(fp16, device="cuda", threads=1)
    assert report.graph == "onnx/cuda.onnx"
    # random weights leave no room for error
    assert {row.name for row in report.rows if not row.ok} <= {"kl_mean"}
    assert "ran onnx/cuda.onnx on CUDAExecutionProvider" in report.notes


def test_captured_graphs_are_reused_or_released(
    fp16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[int] = []
    release = onnxruntime.InferenceSession.release_captured_graph

    def noted(session: onnxruntime.InferenceSession, graph_id: int) -> None:
        released.append(graph_id)
        release(session, graph_id)

    monkeypatch.setattr(onnxruntime.InferenceSession, "release_captured_graph", noted)
    with pretend_cuda():
        model = gptx.load(fp16, device="cuda", threads=1)
        first, second = model.session(), model.session()
        assert released == []
        first.close()  # the pool keeps its buffers
        del (
            second
        )  # the pool has buffers of that shape; a session that was not closed gives its, too
        assert released == [2]
        with model.session() as again, model.session(2):
            again.feed([TEXT[:4]])
            assert released == [2]
        model.close()
        assert sorted(released) == [1, 2, 3]


@cuda
def test_reused_buffers_hold_no_tokens(fp16: Path, cuda: Any) -> None:
    with cuda(), gptx.load(fp16, device="cuda", threads=1) as model:
        expected = forced_logits(model, TEXT[:6])
        with model.session() as session:
            session.feed([TEXT])
        with model.session() as session:
            got = np.concatenate([session.feed([[token]]) for token in TEXT[:6]])
        np.testing.assert_allclose(got, expected, atol=TOLERANCE)


@cuda
def test_a_session_rewinds_and_grows(fp16: Path, cuda: Any) -> None:
    """Rows that are rewound and fed again give what a new session gives, in larger buffers too."""
    ids = [int(token) for token in np.random.default_rng(1).integers(0, 200, 128)]
    with cuda(), gptx.load(fp16, device="cuda", threads=1) as model:
        with model.session(2) as session:
            session.feed([ids[:40], ids[10:70]])
            session.rewind([3, 50])
            again = session.feed([ids[3:100], ids[60:128]])
        with model.session(2) as session:
            fresh = session.feed([ids[:100], ids[10:128]])
    np.testing.assert_allclose(again, fresh, atol=TOLERANCE)


@pytest.mark.gpu
def test_texts_on_a_gpu_do_not_depend_on_what_else_runs(fp16: Path) -> None:
    """A text alone, in a batch, beside an open session and after an unfinished stream."""
    prompts = ["the cat", "a dog and a bird", "the"]
    with gptx.load(fp16, device="cuda") as model:
        alone = [model.generate(prompt, max_new_tokens=24).token_ids for prompt in prompts]
        together = model.generate(prompts, max_new_tokens=24)
        with model.session() as beside:
            beside.feed([TEXT])
            next(iter(model.stream(prompts[0])))
            again = model.generate(prompts[1], max_new_tokens=24).token_ids
    assert [completion.token_ids for completion in together] == alone
    assert again == alone[1]


def test_a_device_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot grow raises an error, whichever buffer fails. The session goes on."""
    path = write_artifact(tmp_path / "a", "shared", n_ctx=600)
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 250, 200)]
    placed, left = cuda_cache._placed, [0]

    def full(array: np.ndarray, device: str) -> object:
        if not left[0]:
            raise RuntimeError(
                "bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 42"
            )
        left[0] -= 1
        return placed(array, device)

    with (
        pretend_cuda(),
        gptx.load(path, device="cuda", threads=1) as model,
        model.session() as plain,
    ):
        expected = plain.feed([ids[:120]], all_logits=True)[0]
        for parts in range(8):
            with model.session() as session, model.session():
                session.feed([ids[:100]])
                with monkeypatch.context() as patch:
                    left[0] = parts
                    patch.setattr(cuda_cache, "_placed", full)
                    with pytest.raises(
                        GptxError,
                        match="no memory for the cache: 1 rows of 256 tokens .* fewer rows",
                    ):
                        session.feed([ids[100:200]])
                for n in range(100, 120):
                    np.testing.assert_allclose(session.feed([[ids[n]]])[0], expected[n], atol=1e-4)


def test_what_onnxruntime_leaves_to_the_cpu_is_named(fp32: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(
        str(fp32 / "onnx/model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    left = left_to_the_cpu(session.get_provider_graph_assignment_info())
    assert left["GroupQueryAttention"] == read_manifest(fp32).model.n_layer
    assert list(left.values()) == sorted(left.values(), reverse=True)
    assert "MatMul" in left and not {"Shape", "Squeeze", "Concat", "Cast"} & left.keys()


def test_auto_says_why_it_is_the_cpu(
    fp32: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ProviderError("device 'cuda' cannot be used: the driver is too old")

    monkeypatch.setattr(open_sessions, "open_on_cuda", refuse)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with gptx.load(fp32, device="auto", threads=1) as model:
        assert (model.provider, model.graph.parent) == (CPU, fp32 / "onnx")
    assert (
        capsys.readouterr().err
        == "on the CPU: device 'cuda' cannot be used: the driver is too old\n"
    )
    with pytest.raises(ProviderError, match="the driver is too old"):
        gptx.load(fp32, device="cuda", threads=1)


def test_a_manifest_that_names_another_graph(fp16: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(fp16, tmp_path / "artifact"))
    manifest = json.loads((folder / "gptx.json").read_text())
    (folder / "gptx.json").write_text(json.dumps({**manifest, "cuda": "elsewhere.onnx"}))
    with pytest.raises(
        ArtifactError, match="cuda is 'elsewhere.onnx', expected 'onnx/cuda.onnx' or nothing"
    ):
        gptx.load(folder)
    del manifest["files"]["onnx/cuda.onnx"]
    (folder / "gptx.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="gptx.json does not list onnx/cuda.onnx"):
        gptx.load(folder)


# On a GPU


@pytest.mark.gpu
def test_fp16_is_proved_on_a_gpu(fp16: Path) -> None:
    report = verify(fp16, device="cuda")
    assert "ran onnx/cuda.onnx on CUDAExecutionProvider" in report.notes
    assert {row.name for row in report.rows if not row.ok} <= {"kl_mean"}


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["growing", "scatter"])
def test_fp32_of_standard_operators_on_a_gpu(artifacts: dict[str, Path], form: str) -> None:
    expected = (
        gptx.load(artifacts[form], threads=1).generate("the cat", max_new_tokens=20).token_ids
    )
    with gptx.load(artifacts[form], device="cuda") as model:
        assert model.provider == "CUDAExecutionProvider"
        assert model.generate("the cat", max_new_tokens=20).token_ids == expected


@pytest.mark.gpu
def test_fp32_of_group_query_attention_is_refused_on_a_gpu(artifacts: dict[str, Path]) -> None:
    with pytest.raises(ProviderError, match="2 GroupQueryAttention of .* on the CPU.*--to fp16"):
        gptx.load(artifacts["shared"], device="cuda")
