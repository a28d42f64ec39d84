"""The promises of docs/explanation/strangers.md about files that a stranger made."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import gptx
from builders.gptx_command import gptx as command
from builders.tiny_artifact import certify_artifact, refresh, write_artifact
from gpt_export.graph.read_weights import load_gpt
from gpt_export.quantization.quantize import gpt_config
from gptx.artifact.layout import GRAPH_FOLDERS, MANIFEST_MOST, SIDE_FILES
from gptx.artifact.manifest import read_manifest
from gptx.errors import ArtifactError, CheckpointError, GptxError
from gptx.inspect import describe
from gptx.text.chat_template import ChatTemplate
from gptx.verify import verify
from gptx_models.checkpoints.checkpoint import load_config, load_model
from gptx_models.importers import import_checkpoint

PAGE = (Path(__file__).parents[3] / "docs/explanation/strangers.md").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    folder = write_artifact(tmp_path_factory.mktemp("strangers") / "artifact", template=template)
    certify_artifact(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "artifact"))


def test_the_pages_table_of_files() -> None:
    found = {}
    for files, most in re.findall(r"^\| (`.*?) \| ([\d,]+)", PAGE, re.M):
        found |= dict.fromkeys(re.findall(r"`([\w.]+\.\w+)`", files), int(most.replace(",", "")))
    assert found == SIDE_FILES
    assert f"at most {MANIFEST_MOST // 10**6} MB" in PAGE
    assert all(f"`{name}/`" in PAGE for name in GRAPH_FOLDERS)


def test_every_test_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", PAGE))
    assert len(named) > 3 and all((Path(__file__).parents[3] / name).exists() for name in named)


# Artifacts: what is read, written and run

WATCHED = """
import sys
events = []
def hook(event, args):
    if event in (
        "open", "import", "pickle.find_class", "subprocess.Popen", "os.system", "os.exec",
        "os.posix_spawn", "socket.connect", "socket.getaddrinfo", "os.remove", "os.rename",
        "os.mkdir", "shutil.rmtree",
    ):
        events.append((event, str(args[0]), str(args[1]) if len(args) > 1 else ""))
import gptx, gptx.cli, gptx.verify, gptx.inspect, onnxruntime, tokenizers, jinja2, numpy
sys.addaudithook(hook)
model = gptx.load(sys.argv[1], threads=1)
model.generate("the cat", max_new_tokens=3)
model.chat().send("the dog", max_new_tokens=3)
gptx.inspect.describe(model.path)
assert gptx.verify.verify(model.path, threads=1).passed
import json
print(json.dumps(events))
"""


def test_what_is_read_and_run(folder: Path) -> None:
    """A process loads, generates, chats, inspects and verifies; its audit events are checked."""
    for name in ("evil.py", "modeling_gptx.py", "sitecustomize.py", "README.md", "weights.pkl"):
        (folder / name).write_text("raise SystemExit('the folder ran code')")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED, folder],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    events = json.loads(ran.stdout)
    kinds = {kind for kind, *_ in events}
    assert "open" in kinds and kinds <= {"open", "import"}
    inside = {
        Path(path).relative_to(folder).as_posix()
        for _, path, _ in events
        if path.startswith(str(folder))
    }
    graphs = {
        path.relative_to(folder).as_posix()
        for name in GRAPH_FOLDERS
        for path in (folder / name).rglob("*")
    }
    assert {
        "gptx.json",
        "gptx_reference.safetensors",
        "chat_template.jinja",
        "onnx/model.onnx",
    } <= inside
    assert inside <= {"gptx.json", *SIDE_FILES, *graphs}
    assert not [event for event in events if event[0] == "open" and set(event[2]) & set("wax+")]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    "how", ["a link", "an absolute path", "a path upwards", "a file that is not listed"]
)
def test_weights_from_outside_the_folder(folder: Path, tmp_path: Path, how: str) -> None:
    secret = tmp_path / "secret"
    path = folder / "onnx/model.onnx"
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    secret.write_bytes(tensor.raw_data)
    (folder / "beside").write_bytes(tensor.raw_data)
    location = {
        "a link": "link",
        "an absolute path": str(secret),
        "a path upwards": "../../secret",
    }.get(how, "../beside")
    if how == "a link":
        (folder / "onnx/link").symlink_to(secret)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    refresh(folder)
    for opened in (gptx.load, verify):
        with pytest.raises(ArtifactError):
            opened(folder, threads=1)
    if how != "a link":  # ONNX Runtime itself, whatever gptx.json lists
        with pytest.raises(ArtifactError, match="ONNX Runtime .* cannot open it"):
            gptx.load(folder, threads=1)


@pytest.mark.parametrize("name", GRAPH_FOLDERS)
def test_folders_of_graphs_that_are_links(folder: Path, name: str) -> None:
    """Searching a link to / would take hours."""
    if name == "onnx":
        (folder / "onnx").rename(folder / "graphs")
    (folder / name).symlink_to("graphs" if name == "onnx" else "/")
    with pytest.raises(ArtifactError, match=f"{name} is not among gptx.json's files"):
        gptx.load(folder)


def test_a_thousand_folders_in_each_other(folder: Path) -> None:
    """Deeper than Python's own functions can walk."""
    for depth in range(1, 1201):
        os.mkdir(f"{folder}/onnx{'/a' * depth}")
    Path(f"{folder}/onnx{'/a' * 1200}/x").write_text("")
    with pytest.raises(ArtifactError, match="onnx/a/a/a.* is not among"):
        gptx.load(folder)
    (folder / "onnx/a").rename(folder / "a")
    assert f"{'a/' * 1200}x" in dict(describe(folder).files)
    subprocess.run(
        ["rm", "-r", folder / "a"], check=True
    )  # pytest cannot remove such a folder either


def test_inspect_says_nothing_of_what_links_lead_to(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("12345")
    for name, target in (
        ("out", tmp_path / "secret"),
        ("zero", "/dev/zero"),
        ("loop", "loop"),
        ("root", "/"),
    ):
        (folder / name).symlink_to(target)
    (folder / "in").symlink_to("config.json")
    os.mkfifo(folder / "pipe")
    files = dict(describe(folder).files)
    assert (
        files["in"] == files["config.json"]
        and not {"out", "zero", "loop", "root", "pipe"} & files.keys()
    )


@pytest.mark.parametrize("domain", ["my.operators", "com.microsoft", "ai.onnx.contrib"])
def test_operators_that_onnxruntime_does_not_have(folder: Path, domain: str) -> None:
    path = folder / "onnx/model.onnx"
    model = onnx.load(path)
    output = model.graph.node[-1].output[0]
    model.graph.node[-1].output[0] = "before"
    kind = (
        "EPContext" if domain == "com.microsoft" else "Anything"
    )  # EPContext names a file of compiled code
    attributes = (
        {"ep_cache_context": "../../secret", "embed_mode": 0} if kind == "EPContext" else {}
    )
    model.graph.node.append(
        helper.make_node(kind, ["before"], [output], domain=domain, **attributes)
    )
    if domain not in {one.domain for one in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    path.write_bytes(model.SerializeToString())
    refresh(folder)
    with pytest.raises(ArtifactError, match="model.onnx"):
        gptx.load(folder, threads=1)


def test_onnxruntime_writes_no_lines_of_its_own(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder / "onnx/model.onnx"
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 1 << 62
    path.write_bytes(model.SerializeToString())
    refresh(folder)
    with pytest.raises(ArtifactError, match="cannot open it"):
        gptx.load(folder, threads=1)
    assert capfd.readouterr() == ("", "")


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "{{ self.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['json'] }}",
    "{{ messages.append.__self__.__class__.__base__ }}",
    "{{ open('/etc/passwd').read() }}",
    "{{ joiner.__init__.__globals__['__builtins__'] }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_sees_neither_files_nor_python(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        text = ChatTemplate(source, {}).render([{"role": "user", "content": "hello"}])
    except GptxError:
        text = ""
    assert text.strip() == "" and list(tmp_path.iterdir()) == []


def test_a_cache_grows_with_its_tokens_not_with_the_named_context(folder: Path) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    manifest["model"]["n_ctx"] = 2**24
    (folder / "gptx.json").write_text(json.dumps(manifest))
    with gptx.load(folder, threads=1) as model, model.session() as session:
        session.feed([[1, 2, 3]])
        assert session.capacity == 128
    manifest["model"]["n_ctx"] = 2**24 + 1
    (folder / "gptx.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="model.n_ctx is"):
        gptx.load(folder)


def test_control_characters_stay_off_the_terminal(folder: Path) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    manifest["source"] = {"name": "x\x1b]0;owned\x07y", "format": "\x1b[2J"}
    manifest["certificate"]["passed"] = False
    manifest["certificate"]["outside"] = ["\x1b[2Jcleared"]
    (folder / "gptx.json").write_text(json.dumps(manifest))
    for verb in ("inspect", "verify"):
        shown = command(verb, folder, terminal=True).text
        assert "\x1b]0" not in shown and "\x1b[2J" not in shown and "\x07" not in shown


# Values that nobody expects

ODD = [
    *(None, True, -1, 0, 1.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30, 10**400),
    *("", "x", "\0", "../x", [], {}, [[]], {"a": 1}, [1, "a"], [None], [-1], [10**12]),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON value."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def end_well(folder: Path, *, run: bool) -> None:
    """Every use of the folder ends in a result or in one of gptx's errors."""
    outcome = command("inspect", folder)  # in this process: a traceback comes through
    assert outcome.status == 0 or outcome.err.startswith("gptx: ")
    if not run:
        return
    outcome = command("verify", folder, "--threads", "1")
    assert (
        outcome.status == 0
        or "gptx: " in outcome.err
        or "not proved on this machine" in outcome.text
    )
    try:
        with gptx.load(folder, threads=1) as model:
            model.generate("the cat", max_new_tokens=2)
    except GptxError:
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decode", [[]]),
        ("decode", 1),
        ("outside", 1),
        ("outside", "x"),
        ("outside", [1]),
        ("accepted", "no"),
        ("accepted", 1),
        ("passed", "yes"),
    ],
)
def test_what_a_certificate_says_of_itself(folder: Path, name: str, value: Any) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    manifest["certificate"] |= {"accepted": True, name: value}
    (folder / "gptx.json").write_text(json.dumps(manifest))
    for opened in (describe, verify):
        with pytest.raises(ArtifactError, match=f"certificate.{name} is .*, expected"):
            opened(folder)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (True, "of no model that gptx knows"),
        ([[]], "of no model that gptx knows"),
        ({"n_head": None}, "of no model that gptx knows"),
        ({"n_layer": 10_000}, "n_layer is 10000, and the model's is 2"),
        (
            {"n_inner": 64},
            r"blocks.0.mlp.up.weight is \[256, 64\], and the model's configuration has \[64, 64\]",
        ),
    ],
)
def test_a_configuration_of_another_model(fp32: Path, values: Any, says: str) -> None:
    manifest = read_manifest(fp32)
    raw = {
        **manifest.raw,
        "gpt_config": {**manifest.raw["gpt_config"], **values}
        if isinstance(values, dict)
        else values,
    }
    with pytest.raises(ArtifactError, match=says):
        config = gpt_config(dataclasses.replace(manifest, raw=raw))
        assert config is not None
        load_gpt(fp32, config)


def test_json_has_no_nan(folder: Path) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    manifest["certificate"]["figures"]["kl_mean"] = float("nan")
    manifest["source"] = {"name": [float("inf")]}
    (folder / "gptx.json").write_text(json.dumps(manifest))
    shown = json.loads(command("inspect", folder, "--json").text, parse_constant=pytest.fail)
    assert shown["manifest"]["source"] == {"name": [None]}


def test_odd_values_in_the_manifest(folder: Path) -> None:
    path = folder / "gptx.json"
    manifest = json.loads(path.read_text())

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(st.sampled_from(places(manifest)), st.sampled_from(ODD), st.integers(0, 3))
    def replace(place: tuple[Any, ...], new: Any, dice: int) -> None:
        path.write_text(json.dumps(replaced(manifest, place, new)))
        end_well(folder, run=dice == 0)

    replace()


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"),
        *("config.json", "tokenizer.json", "gptx_task.json"),
    ],
)
def test_odd_values_in_side_files(folder: Path, name: str) -> None:
    path = folder / name
    if name == "gptx_task.json":
        path.write_text(
            json.dumps({"kind": "classify", "template": "{text}:", "labels": ["a", "b"]})
        )
    value = json.loads(path.read_text())
    where = (
        places(value)
        if name != "tokenizer.json"
        else [place for place in places(value) if "vocab" not in place[:-1]]
    )

    @settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(st.sampled_from(where), st.sampled_from(ODD))
    def replace(place: tuple[Any, ...], new: Any) -> None:
        path.write_text(json.dumps(replaced(value, place, new)))
        refresh(folder)
        end_well(folder, run=True)

    replace()


# Checkpoints


class Code:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "ckpt.pt"])
def test_a_pickle_runs_no_code(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / "model.safetensors").unlink()
    torch.save({"model": Code(), "wte.weight": Code()}, folder / name)
    source = folder if name.endswith("bin") else folder / name
    with pytest.raises(CheckpointError, match="Python objects beyond tensors|cannot be read"):
        import_checkpoint(str(source), tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_a_meta_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptx_models.importers.nanogpt import read_meta

    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"stoi": Code()}))
    with pytest.raises(CheckpointError, match="allow-pickle"):
        read_meta(tmp_path / "meta.pkl")
    assert not (tmp_path / "ran").exists()


def test_python_files_beside_the_weights_are_ignored(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / "modeling_evil.py").write_text("raise SystemExit('the folder ran code')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        name: "modeling_evil.Evil"
        for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    }
    (folder / "config.json").write_text(json.dumps(config))
    mapped = {"AutoTokenizer": ["modeling_evil.Evil", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": mapped}))
    assert load_model(folder).config.n_layer == 2
    import_checkpoint(str(folder), tmp_path / "imported")
    assert not (tmp_path / "imported" / "modeling_evil.py").exists()


def test_an_index_with_a_name_that_no_file_can_have(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copyfile(checkpoint / "config.json", tmp_path / "config.json")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"wte.weight": "a" * 5000}})
    )
    with pytest.raises(
        CheckpointError, match="index.json names 1 files, and these are missing"
    ) as caught:
        load_model(tmp_path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "link.safetensors"])
def test_an_index_names_files_of_its_folder(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"wte.weight": name}})
    )
    with pytest.raises(CheckpointError, match="names files outside its folder"):
        load_model(folder)


@pytest.mark.parametrize(
    ("field", "value"), [("n_embd", 2**64), ("vocab_size", 10**12), ("n_layer", 10**7)]
)
def test_sizes_have_bounds(checkpoint: Path, tmp_path: Path, field: str, value: int) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(CheckpointError, match=field):
        load_config(tmp_path)


def test_describing_reads_headers_alone(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / "other.safetensors").write_bytes(b"\xff" * 8 + b"{}")  # a header of 2**64 bytes
    with pytest.raises(CheckpointError, match="other.safetensors"):
        describe(folder)
