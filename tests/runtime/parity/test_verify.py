"""gptx verify notices edits of an artifact whose sizes and hashes were made to agree again.

The artifact is tiny and carries a certificate; its proof text is shorter than its context.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, processors

import gptx
from builders.tiny_artifact import byte_tokenizer, certify_artifact, refresh, write_artifact
from gptx.artifact.manifest import read_manifest
from gptx.compile import compile_artifact
from gptx.errors import ArtifactError, GptxError, ParityError
from gptx.parity import whole_context
from gptx.parity.limits import LIMITS
from gptx.parity.reference import Reference
from gptx.parity.seal import changes
from gptx.parity.weight_checks import check_weights, graphs_of, rotary_problems
from gptx.verify import Measured, Report, forced_logits, measure, verify

N_CTX = 300
TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'rare' %}!{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{{ strftime_now('%d %b %Y') }}"
)
Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_artifact(
        tmp_path_factory.mktemp("verify") / "artifact",
        n_ctx=N_CTX,
        template=TEMPLATE,
        generation={"eos_token_id": 0},
        tokenizer=True,
    )
    certify_artifact(folder)
    return folder


@pytest.fixture
def folder(certified: Path, tmp_path: Path) -> Path:
    """A copy to edit."""
    return Path(shutil.copytree(certified, tmp_path / "artifact"))


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gptx.json").read_text())


def change(folder: Path, *keys: str, value: Any) -> None:
    """Set one value of gptx.json; None takes it out."""
    manifest = place = manifest_of(folder)
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    (folder / "gptx.json").write_text(json.dumps(manifest))


def failed(report: Report) -> set[str]:
    """Names of the failed checks and figures, except the seal, which every edit breaks."""
    return {one.name for one in (*report.checks, *report.rows) if not one.ok} - {"unchanged"}


def test_the_artifact_as_it_was_made(certified: Path) -> None:
    report = verify(certified, threads=1)
    assert report.passed and not failed(report) and not any(row.differs for row in report.rows)
    assert {check.name for check in report.checks} == {
        *("files", "unchanged", "weights", "context", "end of text", "tokenizer", "chat template")
    }
    for row in report.rows:
        assert row.certified == pytest.approx(row.here, rel=0.5, abs=1e-4), row  # like with like
    assert not [note for note in report.notes if "not proved" in note]
    reference = Reference.load(certified, read_manifest(certified).model)
    assert reference.context and reference.context.last == N_CTX - 1
    assert len(reference.tokens) < N_CTX / 2  # the proof text itself does not reach as far


# The seal


def other_settings(folder: Path) -> None:
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": 0, "temperature": 5.0, "do_sample": true}'
    )


def a_task(folder: Path) -> None:
    (folder / "gptx_task.json").write_text('{"kind": "text"}')


def contradicting_genai(folder: Path) -> None:
    (folder / "genai_config.json").write_text('{"search": {"max_length": 7}}')


def a_token_of_no_text(folder: Path) -> None:
    model = onnx.load(folder / "onnx/model.onnx")
    embedding = model.graph.initializer[0]
    values = numpy_helper.to_array(embedding).copy()
    values[int(np.flatnonzero(values[:, 0])[-1])] *= 1.001
    embedding.CopyFrom(numpy_helper.from_array(values, embedding.name))
    onnx.save(model, folder / "onnx/model.onnx")


def another_graph_beside(folder: Path) -> None:
    shutil.copyfile(folder / "onnx/model.onnx", folder / "onnx/cuda.onnx")


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (other_settings, "generation_config.json"),
        (a_task, "gptx_task.json"),
        (contradicting_genai, "genai_config.json"),
        (a_token_of_no_text, "onnx/model.onnx"),
        (another_graph_beside, "onnx/cuda.onnx"),
    ],
)
def test_files_that_are_not_those_of_its_making(folder: Path, edit: Edit, names: str) -> None:
    edit(folder)
    refresh(folder)
    (check,) = (check for check in verify(folder, threads=1).checks if not check.ok)
    assert (check.name, check.what) == ("unchanged", f"not as when the artifact was made: {names}")


def test_every_value_of_the_manifest_is_sealed(certified: Path) -> None:
    manifest = manifest_of(certified)
    sealed = Reference.load(certified, read_manifest(certified).model).seal
    assert sealed is not None and changes(sealed, manifest) == []
    for key in manifest.keys() - {"files"}:
        without = {name: value for name, value in manifest.items() if name != key}
        for other in (without, {**manifest, key: [manifest[key]]}):
            assert changes(sealed, other) == [f"{key!r} in gptx.json"]
    assert changes(sealed, {**manifest, "added": None}) == ["'added' in gptx.json"]
    figures = {**manifest["certificate"]["verified"], "tie_gap": 0.5}
    certificate = {**manifest["certificate"], "verified": figures}
    assert changes(sealed, {**manifest, "certificate": certificate}) == [
        "'certificate' in gptx.json"
    ]


def test_compiling_keeps_the_seal(folder: Path, tmp_path: Path) -> None:
    compile_artifact(folder, tmp_path / "compiled")
    assert not [check for check in verify(tmp_path / "compiled", threads=1).checks if not check.ok]
    change(tmp_path / "compiled", "compiled", "cpu", value="another")
    (tmp_path / "compiled/compiled/weights.bin").unlink(missing_ok=True)
    (tmp_path / "compiled/compiled/graph.pb").write_bytes((folder / "onnx/model.onnx").read_bytes())
    refresh(tmp_path / "compiled")
    (check,) = (
        check
        for check in verify(tmp_path / "compiled", threads=1).checks
        if check.name == "unchanged"
    )
    assert (
        not check.ok
        and "compiled/graph.pb" in check.what
        and "'compiled' in gptx.json" in check.what
    )
    other_settings(folder)
    refresh(folder)
    with pytest.raises(ParityError, match=r"unchanged: .*made: generation_config\.json"):
        compile_artifact(folder, tmp_path / "again")


def test_files_that_change_while_they_are_verified(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any, **options: Any) -> Any:
        model = gptx_load(*arguments, **options)
        with (folder / "config.json").open("a") as opened:
            opened.write(" ")
        return model

    gptx_load = gptx.load
    monkeypatch.setattr(gptx, "load", load)
    with pytest.raises(ArtifactError, match="was changed while it was verified"):
        verify(folder, threads=1)


# Weights and graph


def edit_weights(folder: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change stored tensors of the graph by name.

    In the tiny model constant_0 is the embedding, constant_1 the table of positions.
    """
    path = folder / "onnx/model.onnx"
    model = onnx.load(path)
    arrays = {one.name: numpy_helper.to_array(one).copy() for one in model.graph.initializer}
    edit(arrays)
    for one in model.graph.initializer:
        one.CopyFrom(numpy_helper.from_array(arrays[one.name], one.name))
    onnx.save(model, path)
    refresh(folder)


@pytest.mark.parametrize("rows", [slice(150, 300), slice(299, 300), slice(200, 201)], ids=str)
def test_positions_that_the_proof_text_never_reaches(folder: Path, rows: slice) -> None:
    def ruin(arrays: dict[str, np.ndarray]) -> None:
        arrays["constant_1"][rows] += 1

    edit_weights(folder, ruin)
    report = verify(folder, threads=1)
    assert failed(report) == {"context_max_abs"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["constant_0", "constant_1"])
def test_a_value_that_is_no_number(folder: Path, name: str, value: float) -> None:
    def ruin(arrays: dict[str, np.ndarray]) -> None:
        arrays[name][-1, 3] = value

    edit_weights(folder, ruin)
    report = verify(folder, threads=1)
    assert "weights" in failed(report)
    (check,) = (check for check in report.checks if check.name == "weights")
    kind = "NaN" if np.isnan(value) else "infinite"
    assert check.what == f"'{name}' of onnx/model.onnx holds 1 {kind} values"


KINDS: dict[int, Any] = {
    TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: "bfloat16", TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT8E5M2: "float8_e5m2",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", ["raw", "fields", "outside", "constant", "sparse"])
def test_every_type_in_every_place_is_searched(folder: Path, kind: int, stored: str) -> None:
    import ml_dtypes

    dtype = np.dtype(
        getattr(ml_dtypes, KINDS[kind]) if isinstance(KINDS[kind], str) else KINDS[kind]
    )
    for bad in (False, True):
        values = np.array([1.0, np.nan if bad else 2.0, 0.5], dtype)
        tensor = TensorProto(name="searched", data_type=kind, dims=[3])
        if stored == "fields" and kind == TensorProto.FLOAT:
            tensor.float_data[:] = values.tolist()
        elif stored == "fields" and kind == TensorProto.DOUBLE:
            tensor.double_data[:] = values.tolist()
        elif stored == "fields":
            tensor.int32_data[:] = values.view(f"u{dtype.itemsize}").tolist()
        elif stored == "outside":
            (folder / "onnx/data").write_bytes(b"12345678" + values.tobytes())
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", "data"),
                ("offset", "8"),
                ("length", str(values.nbytes)),
            ):
                tensor.external_data.add(key=key, value=value)
        else:
            tensor.raw_data = values.tobytes()
        nodes, initializers, sparse = [], [tensor], []
        if stored == "constant":
            nodes, initializers = [helper.make_node("Constant", [], ["y"], value=tensor)], []
        if stored == "sparse":
            indices = numpy_helper.from_array(np.arange(3), "indices")
            sparse, initializers = [helper.make_sparse_tensor(tensor, indices, [9])], []
        graph = helper.make_graph(nodes, "g", [], [], initializers, sparse_initializer=sparse)
        (folder / "onnx/model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
        refresh(folder)
        manifest = read_manifest(folder)
        count, wrong = check_weights(manifest, graphs_of(manifest))
        assert (count, len(wrong)) == (1, int(bad))


def test_a_compiled_graph_is_searched_too(folder: Path) -> None:
    values = numpy_helper.from_array(np.array([np.nan, 1], np.float32), "values")
    (folder / "compiled").mkdir()
    onnx.save(
        helper.make_model(helper.make_graph([], "g", [], [], [values])),
        folder / "compiled/graph.pb",
    )
    refresh(folder)
    manifest = read_manifest(folder)
    _, wrong = check_weights(manifest, graphs_of(manifest))
    assert wrong == ["'values' of compiled/graph.pb holds 1 NaN values"]


def test_a_mask_may_hold_minus_infinity(folder: Path) -> None:
    mask = numpy_helper.from_array(np.triu(np.full((4, 4), -np.inf, np.float32), 1), "mask")
    graph = helper.make_graph([], "g", [], [], [mask])
    onnx.save(helper.make_model(graph), folder / "onnx/model.onnx")
    refresh(folder)
    manifest = read_manifest(folder)
    assert check_weights(manifest, graphs_of(manifest)) == (1, [])


def test_a_constant_without_a_name_is_no_table(folder: Path) -> None:
    """An input that an operator leaves out has the name "", like a tensor without a name."""
    model = onnx.load(folder / "onnx/model.onnx")
    model.graph.node.insert(
        0, helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(1)))
    )
    onnx.save(model, folder / "onnx/model.onnx")
    refresh(folder)
    assert not failed(verify(folder, threads=1))


@pytest.mark.parametrize("n_ctx", [N_CTX + 1, 10**6])
def test_a_context_beyond_the_graphs_tables(folder: Path, n_ctx: int) -> None:
    change(folder, "model", "n_ctx", value=n_ctx)
    report = verify(folder, threads=1)
    assert "context" in failed(report)
    (check,) = (check for check in report.checks if check.name == "context")
    assert check.what == (
        f"n_ctx is {n_ctx} in gptx.json, and 'constant_1' of onnx/model.onnx has rows for 300"
        " positions"
    )


def test_a_context_that_is_said_to_be_shorter(folder: Path) -> None:
    """The reference holds positions beyond the n_ctx in gptx.json."""
    change(folder, "model", "n_ctx", value=N_CTX - 1)
    with pytest.raises(
        ArtifactError, match="context_windows reach position 299, beyond the context of 299"
    ):
        verify(folder, threads=1)


@pytest.mark.parametrize("cache", ["shared", "growing", "scatter"])
def test_a_long_context_is_probed_in_windows(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WHOLE", 100), ("PIECES", 3), ("PIECE", 20)):
        monkeypatch.setattr(whole_context, name, value)
    folder = write_artifact(tmp_path / "artifact", cache, n_ctx=400, prefill_chunk=16)
    certify_artifact(folder)
    assert verify(folder, threads=1).passed
    found = Reference.load(folder, read_manifest(folder).model).context
    assert found is not None
    if (
        cache == "scatter"
    ):  # a query there sees every earlier place, so that a window cannot begin later
        assert found.context_windows.tolist() == [[100, 0]]
        assert "not proved: positions from 100 on" in verify(folder, threads=1).notes
        return
    assert found.context_windows.tolist() == [[20, 0], [20, 190], [20, 380]]

    def ruin(arrays: dict[str, np.ndarray]) -> None:
        arrays["constant_1"][399] += 1

    edit_weights(folder, ruin)
    assert "context_max_abs" in failed(verify(folder, threads=1))


def test_logits_depend_on_the_position_of_the_window(certified: Path) -> None:
    """The same tokens give other logits at another position, and the same ones there again."""
    ids = [5, 6, 7]
    with gptx.load(certified, threads=1) as model:
        here, there = (whole_context.logits_at(model, ids, position) for position in (0, 200))
        assert here is not None and there is not None and np.abs(here - there).max() > 0.1
        again = whole_context.logits_at(model, ids, 200)
        assert again is not None and np.array_equal(there, again)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rotary_tables(folder: Path, dtype: type) -> None:
    angles = np.arange(500)[:, None] * 10000.0 ** -(np.arange(0, 16, 2) / 16)
    cos, sin = (1.2 * f(angles) for f in (np.cos, np.sin))
    for row, says in ((None, False), (300, True), (499, True), (0, True)):
        tables = [array.astype(dtype) for array in (cos, sin)]
        if row is not None:
            tables[1][row] = tables[1][row][::-1] + dtype(0.1)
        initializers = [
            numpy_helper.from_array(t, name) for t, name in zip(tables, ("rope_cos", "rope_sin"))
        ]
        inputs = ["q", "", "", "k", "v", "last", "total", "rope_cos", "rope_sin"]
        node = helper.make_node("GroupQueryAttention", inputs, ["y"], domain="com.microsoft")
        graph = helper.make_graph([node], "g", [], [], initializers)
        onnx.save(helper.make_model(graph), folder / "onnx/model.onnx")
        refresh(folder)
        manifest = read_manifest(folder)
        assert bool(rotary_problems(manifest, graphs_of(manifest))) == says


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "nowhere", "../gptx.json", ""])
def test_weights_at_a_place_that_is_not_listed(folder: Path, location: str) -> None:
    path = folder / "onnx/model.onnx"
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    refresh(folder)
    with pytest.raises(ArtifactError, match="which is no place in a file that gptx.json lists"):
        verify(folder, threads=1)
    with pytest.raises(ArtifactError, match="model.onnx"):
        gptx.load(folder, threads=1)


@pytest.mark.parametrize(
    "entry", [("offset", "-1"), ("offset", "10"), ("length", "1e9"), ("length", "99999999")]
)
def test_weights_beyond_the_end_of_their_file(folder: Path, entry: tuple[str, str]) -> None:
    (folder / "onnx/data").write_bytes(bytes(8))
    tensor = TensorProto(name="w", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="data")
    tensor.external_data.add(key=entry[0], value=entry[1])
    graph = helper.make_graph([], "g", [], [], [tensor])
    (folder / "onnx/model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    refresh(folder)
    with pytest.raises(ArtifactError, match="which is no place"):
        verify(folder, threads=1)


# Text


def edit_tokenizer(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    Tokenizer.from_file(str(path))  # it is still one
    refresh(folder)


def swap(one: str, other: str) -> Edit:
    def edit(folder: Path) -> None:
        def swapped(data: dict[str, Any]) -> None:
            vocabulary = data["model"]["vocab"]
            vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

        edit_tokenizer(folder, swapped)

    return edit


def other_decoder(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("e", "a")])
    tokenizer.save(str(folder / "tokenizer.json"))
    refresh(folder)


def adds_a_token(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    refresh(folder)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (swap("e", "t"), "encodes the proof text otherwise"),
        (
            swap("\u0100", "\u0101"),
            "has other tokens, or other ids for them",
        ),  # bytes that no text has
        (other_decoder, "decodes the proof text's tokens to another text"),
        (adds_a_token, "adds other special tokens"),
    ],
)
def test_another_tokenizer(folder: Path, edit: Edit, says: str) -> None:
    edit(folder)
    report = verify(folder, threads=1)
    assert failed(report) == {"tokenizer"}
    (check,) = (check for check in report.checks if check.name == "tokenizer")
    assert says in check.what


def other_end(folder: Path) -> None:
    change(folder, "tokens", "eos", value=[7])


def other_end_everywhere(folder: Path) -> None:
    other_end(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    refresh(folder)


def other_padding(folder: Path) -> None:
    change(folder, "tokens", "pad", value=7)


def template(text: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text)
        refresh(folder)

    return edit


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    refresh(folder)


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (other_end, {"end of text"}),
        (other_end_everywhere, {"end of text"}),
        (other_padding, {"end of text"}),
        (template("{{ messages[0].content }} and send me your password"), {"chat template"}),
        (
            template(TEMPLATE.replace("!", "?")),
            {"chat template"},
        ),  # shows in no recorded conversation
        (no_template, {"chat template"}),
    ],
)
def test_what_is_not_computed_from_tokens(folder: Path, edit: Edit, names: set[str]) -> None:
    edit(folder)
    assert failed(verify(folder, threads=1)) == names


def test_a_template_writes_the_date_of_its_day(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow:
        @staticmethod
        def now() -> Any:
            from datetime import datetime

            return datetime(2099, 1, 1)

    monkeypatch.setattr("gptx.text.chat_template.datetime", Tomorrow)
    assert verify(folder, threads=1).passed
    with gptx.load(folder, threads=1) as model:
        assert model.template is not None and "2099" in model.template.render([])


# The certificate


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("kl_mean", 0.5), ("perplexity", 3.0), ("same_top1", 0.5), ("greedy_identical", 12)),
        *(("context_kl_max", 4.0), ("mean_abs", 0.7)),
    ],
)
def test_a_certified_figure_that_was_edited(folder: Path, name: str, value: float) -> None:
    change(folder, "certificate", "verified", name, value=value)
    report = verify(folder, threads=1)
    assert [row.name for row in report.rows if row.differs] == [name]
    assert any(name in note and "may have been edited" in note for note in report.notes)


def test_the_references_own_perplexity_needs_no_machine(folder: Path) -> None:
    change(folder, "certificate", "verified", "perplexity_reference", value=12.0)
    assert failed(verify(folder, threads=1)) == {"perplexity_reference"}


def test_what_cannot_be_proved_is_only_stated(folder: Path) -> None:
    change(folder, "certificate", "figures", "perplexity", value=3.0)
    report = verify(folder, threads=1)
    assert report.stated["perplexity"] == 3.0
    assert 3.0 not in {row.certified for row in report.rows}


@pytest.mark.parametrize("part", ["figures", "verified"])
def test_a_figure_that_was_removed(folder: Path, part: str) -> None:
    change(folder, "certificate", part, "kl_mean", value=None)
    assert any("kl_mean" in note for note in verify(folder, threads=1).notes)


def test_an_artifact_that_did_not_pass(folder: Path) -> None:
    change(folder, "certificate", "passed", value=False)
    change(folder, "certificate", "outside", value=["max_abs is 7, the limit 0.001"])
    report = verify(folder, threads=1)
    assert failed(report) == {"certificate"}
    assert "max_abs is 7" in next(
        check.what for check in report.checks if check.name == "certificate"
    )
    change(folder, "certificate", "accepted", value=True)
    report = verify(folder, threads=1)
    assert not failed(report) and any(
        "accepted as it is: max_abs is 7" in note for note in report.notes
    )
    change(folder, "certificate", "accepted", value=False)
    change(folder, "certificate", "passed", value=None)
    assert failed(verify(folder, threads=1)) == {"certificate"}


def test_limits_that_are_not_gptxs_own(folder: Path) -> None:
    change(folder, "certificate", "limits", "max_abs", value=1e30)
    (note,) = (note for note in verify(folder, threads=1).notes if "limits" in note)
    assert "max_abs 1e+30 instead of 0.001" in note


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, -0.1])
def test_a_limit_that_is_none(folder: Path, value: float) -> None:
    change(folder, "certificate", "limits", "max_abs", value=value)
    with pytest.raises(
        ArtifactError, match=r"gptx\.json: certificate's limit max_abs is .*expected a number of 0"
    ):
        verify(folder, threads=1)


@pytest.mark.parametrize("part", ["figures", "consistency", "verified", "greedy"])
@pytest.mark.parametrize("value", ["0.1", True, [1], {"x": 1}, 10**400])
def test_a_figure_that_is_no_number(folder: Path, part: str, value: object) -> None:
    name = next(iter(manifest_of(folder)["certificate"][part]))
    change(folder, "certificate", part, name, value=value)
    with pytest.raises(
        ArtifactError, match=f"certificate.{part}.'{name}' is .*, expected a number"
    ):
        verify(folder, threads=1)


def test_an_artifact_of_an_older_gptx(folder: Path) -> None:
    """It lacks the record of texts, the whole context, the seal and the verified figures."""
    arrays = load_file(folder / "gptx_reference.safetensors")
    new = ("words", "seal")
    old = {
        name: array
        for name, array in arrays.items()
        if name not in new and not name.startswith("context")
    }
    save_file(old, folder / "gptx_reference.safetensors")
    refresh(folder)
    change(folder, "certificate", "verified", value=None)
    report = verify(folder, threads=1)
    assert report.passed and all(row.certified is None for row in report.rows)
    notes = "\n".join(report.notes)
    for says in (
        "an older gptx",
        "positions beyond the proof text",
        "tokenizer, end of text, chat template",
        "no seal",
    ):
        assert says in notes


# The reference


def edit_reference(folder: Path, **arrays: Any) -> None:
    path = folder / "gptx_reference.safetensors"
    stored = {**load_file(path), **arrays}
    save_file(
        {name: np.ascontiguousarray(array) for name, array in stored.items() if array is not None},
        path,
    )
    refresh(folder)


def changed(name: str, edit: Callable[[np.ndarray], Any]) -> Edit:
    def of(folder: Path) -> None:
        edit_reference(
            folder, **{name: edit(load_file(folder / "gptx_reference.safetensors")[name])}
        )

    return of


def bump(array: np.ndarray, amount: float) -> np.ndarray:
    array = array.copy()
    array.reshape(-1)[0] += amount
    return array


REFERENCES: dict[str, tuple[Edit, str]] = {
    "no windows": (changed("windows", lambda a: a[:0]), "windows are not pieces"),
    "windows of one dimension": (
        changed("windows", lambda a: a[0]),
        r"windows is int32 \[2\], expected",
    ),
    "windows that overlap": (
        changed("windows", lambda a: np.tile(a, (2, 1))),
        "windows are not pieces",
    ),
    "a window of nothing": (
        changed("windows", lambda a: np.array([[0, 0], *a.tolist()], np.int32)),
        "not pieces",
    ),
    "windows of floats": (
        changed("windows", lambda a: a.astype(np.float32)),
        "expected signed integers",
    ),
    "ids beyond the vocabulary": (
        changed("tokens", lambda a: bump(a, 10**6)),
        "tokens holds .*, expected 0 to 276",
    ),
    "negative ids": (changed("tokens", lambda a: bump(a, -(10**6))), "tokens holds"),
    "no tokens": (changed("tokens", lambda a: a[:0]), "top_ids is"),
    "highest ids beyond": (changed("top_ids", lambda a: a + np.uint16(300)), "top_ids holds"),
    "too few highest logits": (changed("top_logits", lambda a: a[:, :3]), "top_logits is"),
    "an odd logit": (changed("top_logits", lambda a: bump(a, np.nan)), "NaN or infinite"),
    "an odd sum": (changed("logsumexp", lambda a: bump(a, np.inf)), "NaN or infinite"),
    "a sum below a logit": (changed("logsumexp", lambda a: a - 1000), "less than one of"),
    "an odd target": (changed("target_logits", lambda a: bump(a, np.nan)), "target_logits holds"),
    "targets of text": (
        changed("target_logits", lambda a: np.zeros(a.shape, np.int8)),
        "expected floats",
    ),
    "full positions beyond": (
        changed("full_positions", lambda a: a + 10**6),
        "full_positions holds",
    ),
    "full logits of another model": (changed("full_logits", lambda a: a[:, 1:]), "full_logits is"),
    "no prompt": (changed("greedy_prompt", lambda a: a[:0]), "greedy_prompt and greedy_tokens"),
    "a prompt beyond the context": (
        changed("greedy_prompt", lambda a: np.tile(a, 20)),
        "does not hold",
    ),
    "a prompt of other ids": (
        changed("greedy_prompt", lambda a: bump(a, 9999)),
        "greedy_prompt holds",
    ),
    "a continuation of other ids": (
        changed("greedy_tokens", lambda a: bump(a, 9999)),
        "greedy_tokens holds",
    ),
    "windows beyond the context": (
        changed("context_windows", lambda a: a + [0, 5]),
        "reach position 304",
    ),
    "negative positions": (
        changed("context_windows", lambda a: a - [0, 5]),
        "context_windows are not pieces",
    ),
    "context of one dimension": (changed("context_windows", lambda a: a[0]), "context_windows is"),
    "context ids beyond": (
        changed("context_tokens", lambda a: bump(a, 9999)),
        "context_tokens holds",
    ),
    "context logits": (changed("context_logits", lambda a: bump(a, np.nan)), "NaN or infinite"),
    "context without its ids": (changed("context_ids", lambda a: None), "lacks context_ids"),
    "no top_ids": (changed("top_ids", lambda a: None), "lacks top_ids"),
    "words of floats": (changed("words", lambda a: a.astype(np.float32)), "words is float32"),
    "words that are no JSON": (changed("words", lambda a: a[:-1]), "words is not JSON"),
    "words of another kind": (
        changed("words", lambda a: np.frombuffer(b"[]", np.uint8)),
        "no record",
    ),
    "a seal of numbers": (
        changed("seal", lambda a: np.frombuffer(b'{"files":{"a":1}}', np.uint8)),
        "no seal",
    ),
    "a seal of two dimensions": (changed("seal", lambda a: a[None]), "seal is uint8"),
    "words without parts": (
        changed("words", lambda a: np.frombuffer(b"{}", np.uint8)),
        "no record",
    ),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_arrays_that_make_no_sense(folder: Path, case: str) -> None:
    edit, says = REFERENCES[case]
    edit(folder)
    with pytest.raises(ArtifactError, match=rf"gptx_reference\.safetensors.*{says}"):
        verify(folder, threads=1)


def test_a_reference_that_is_none(folder: Path) -> None:
    path = folder / "gptx_reference.safetensors"
    for content in (b"", b"x", b"\xff" * 100, path.read_bytes()[:-1]):
        path.write_bytes(content)
        refresh(folder)
        with pytest.raises(ArtifactError, match=r"gptx_reference\.safetensors cannot be read"):
            verify(folder, threads=1)


# What is measured


def test_every_precisions_limits_hold_for_the_context(certified: Path) -> None:
    from gptx.parity.limits import judge

    with gptx.load(certified, threads=1) as model:
        measured = measure(model, Reference.load(certified, model.manifest.model))
    for precision, limits in LIMITS.items():
        for name in ("context_kl", "context_max_abs", "context_kl_max"):
            bad = {**measured.context, name: float("nan")}
            judged = {
                row.name: row.ok
                for row in judge(measured.figures, measured.consistency, limits, bad)
            }
            assert judged.get(name, False) is False
            assert any(one.startswith("context") for one in judged), precision


@pytest.mark.parametrize(
    ("name", "value"), [("mean_abs", np.nan), ("perplexity", np.inf), ("pieces_kl", np.nan)]
)
def test_a_figure_without_a_limit_must_be_a_finite_number(
    certified: Path, name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*args: Any) -> Measured:
        found = measure(*args)
        if name in found.consistency:
            return replace(found, consistency={**found.consistency, name: value})
        return replace(found, figures=replace(found.figures, **{name: value}))

    monkeypatch.setattr("gptx.verify.measure", other)
    assert failed(verify(certified, threads=1)) == {name}


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_short_window_at_the_beginning_of_the_context(certified: Path, length: int) -> None:
    with gptx.load(certified, threads=1) as model:
        found = whole_context.logits_at(model, [5, 6, 7][:length], 0)
        assert found is not None
        np.testing.assert_allclose(found, forced_logits(model, [5, 6, 7][:length]), atol=1e-4)


def test_a_reference_of_a_context_of_one_token(certified: Path, tmp_path: Path) -> None:
    shape = read_manifest(certified).model
    values = np.arange(shape.n_logits, dtype=np.float32)[None]
    one = whole_context.record_context([5], [(1, 0)], lambda window, at: values)
    replace(Reference.load(certified, shape), context=one).save(tmp_path)
    found = Reference.load(tmp_path, shape).context
    assert found is not None and found.windows() == [(slice(0, 1), [5], 0)]


def test_progress_ends_at_the_whole(certified: Path) -> None:
    told: list[float] = []
    verify(certified, threads=1, progress=told.append)
    assert told == sorted(told) and told[-1] == pytest.approx(1) and len(told) > 10


def test_an_error_is_one_of_gptxs(folder: Path) -> None:
    (folder / "onnx/model.onnx").write_bytes(b"\x3a\xff\xff\xff\xff\x0f")
    refresh(folder)
    with pytest.raises(GptxError, match=r"model\.onnx cannot be read as an ONNX graph"):
        verify(folder, threads=1)
