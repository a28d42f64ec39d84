"""gptx import of Hugging Face folders and hub names: tokenizer files, token ids, errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from gptx.errors import CheckpointError, OutputError, UsageError
from gptx_models.checkpoints.checkpoint import load_model
from gptx_models.cli.import_checkpoint import import_
from gptx_models.importers import import_checkpoint

transformers = pytest.importorskip("transformers")  # the independent reference

TEXTS = ["hello world", "It's 2024; I'd say so.", "a  b\n\tc", "naïve 日本 😀"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 as transformers writes it: 290 tokens in a vocabulary of 320."""
    folder = tmp_path_factory.mktemp("hf") / "tiny-gpt2"
    config = transformers.GPT2Config(
        vocab_size=320,
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.model.save(str(folder))
    transformers.GPT2TokenizerFast(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    ).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Tiny\n")
    return folder


def copy(folder: Path, to: Path, *without: str) -> Path:
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*without)))


def encode(folder: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


def test_a_folder_whole(theirs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    folder = import_checkpoint(str(theirs), tmp_path / "ours", tell=said.append)
    assert said == []
    reference = transformers.AutoModelForCausalLM.from_pretrained(theirs).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(theirs)
    ids = torch.tensor([tokenizer("hello world. It's me").input_ids])
    torch.testing.assert_close(load_model(folder)(ids), reference(ids).logits, atol=1e-4, rtol=0)
    assert encode(folder) == [tokenizer(text).input_ids for text in TEXTS]
    about = json.loads((folder / "gptx_source.json").read_text())
    assert (
        about["format"] == "huggingface"
        and about["licence"] == "mit"
        and about["name"] == "tiny-gpt2"
    )
    assert about["tensor_types"]["transformer.h.0.attn.c_attn.weight"] == "F32"
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 0 and "pad_token_id" not in generation
    # A checkpoint of gptx is copied unchanged.
    again = import_checkpoint(str(folder), tmp_path / "again")
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {
        f.name: f.read_bytes() for f in again.iterdir()
    }


def test_vocab_and_merges_become_a_tokenizer_json(theirs: Path, tmp_path: Path) -> None:
    old = copy(
        theirs,
        tmp_path / "old",
        "tokenizer*.json",
        "special_tokens_map.json",
        "generation_config.json",
    )
    folder = import_checkpoint(str(old), tmp_path / "ours")
    assert encode(folder) == encode(theirs)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "GPT2Tokenizer" and config["eos_token"] == "<|endoftext|>"
    again = transformers.AutoTokenizer.from_pretrained(folder)
    assert [again(text).input_ids for text in TEXTS] == encode(theirs)


def test_gpt1_vocabulary_as_transformers_converts_it(tmp_path: Path) -> None:
    config = transformers.OpenAIGPTConfig(
        vocab_size=64, n_positions=16, n_embd=8, n_layer=1, n_head=1
    )
    source = tmp_path / "gpt1"
    transformers.OpenAIGPTLMHeadModel(config).save_pretrained(source)
    words = [
        "l",
        "o",
        "w",
        "e",
        "r",
        "s</w>",
        "r</w>",
        "w</w>",
        "lo",
        "low",
        "er</w>",
        "low</w>",
        "<unk>",
        ",</w>",
    ]
    (source / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (source / "merges.txt").write_text("#version: 0.2\nl o\nlo w\ne r</w>\nlo w</w>\n")
    folder = import_checkpoint(str(source), tmp_path / "ours")
    slow = transformers.OpenAIGPTTokenizer(str(source / "vocab.json"), str(source / "merges.txt"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("lower low, Lower LOW", "lows xyz"):
        assert tokenizer.encode(text).ids == slow(text).input_ids
    assert json.loads((folder / "config.json").read_text())["model_type"] == "openai-gpt"


def test_chat_template_inside_tokenizer_config(theirs: Path, tmp_path: Path) -> None:
    source = copy(theirs, tmp_path / "chat")
    config = json.loads((source / "tokenizer_config.json").read_text())
    templates = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": "{{ messages[0].content }}"},
    ]
    (source / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": templates})
    )
    folder = import_checkpoint(str(source), tmp_path / "ours")
    assert (folder / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_without_a_tokenizer_and_with_one_given(theirs: Path, tmp_path: Path) -> None:
    bare = copy(
        theirs, tmp_path / "bare", "*token*", "vocab.json", "merges.txt", "generation_config.json"
    )
    said: list[str] = []
    folder = import_checkpoint(str(bare), tmp_path / "ids", tell=said.append)
    assert (
        not (folder / "tokenizer.json").exists()
        and "token ids only" in said[0]
        and "--tokenizer" in said[0]
    )
    for name, tokenizer in (("folder", theirs), ("file", theirs / "tokenizer.json")):
        folder = import_checkpoint(str(bare), tmp_path / name, tokenizer=tokenizer)
        assert encode(folder) == encode(theirs)
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 0
    with pytest.raises(CheckpointError, match="neither tokenizer.json nor vocab.json"):
        import_checkpoint(str(bare), tmp_path / "none", tokenizer=bare)
    with pytest.raises(CheckpointError, match="config.json is not a tokenizer.json"):
        import_checkpoint(str(bare), tmp_path / "wrong", tokenizer=bare / "config.json")


def test_a_tokenizer_of_another_model_is_refused(theirs: Path, tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=280, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "small")
    with pytest.raises(
        CheckpointError, match="ids up to 289, and the model's vocabulary has 280 tokens"
    ):
        import_checkpoint(str(tmp_path / "small"), tmp_path / "out", tokenizer=theirs)
    assert not (tmp_path / "out").exists()


def test_ids_beyond_the_vocabulary_are_left_out(theirs: Path, tmp_path: Path) -> None:
    source = copy(theirs, tmp_path / "source")
    path = source / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [0, 50256], "bos_token_id": 0, "do_sample": True}))
    said: list[str] = []
    folder = import_checkpoint(str(source), tmp_path / "ours", tell=said.append)
    left = {"bos_token_id": 0, "eos_token_id": 0, "do_sample": True}
    assert json.loads((folder / "generation_config.json").read_text()) == left
    assert "eos_token_id names 50256, beyond the vocabulary of 320" in said[0]


def test_outputs_are_whole_or_not_there(theirs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    for force in (False, True):
        with pytest.raises(OutputError):
            import_checkpoint(str(theirs), out, force=force)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    import_checkpoint(str(theirs), tmp_path / "again")
    import_checkpoint(str(theirs), tmp_path / "again", force=True)
    with pytest.raises(UsageError, match="is the source itself"):
        import_checkpoint(str(theirs), theirs, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "out"]


@pytest.mark.parametrize(
    "source, said",
    [
        ("nowhere", "nowhere does not exist"),
        ("runs/model.gguf", "runs/model.gguf does not exist"),
        ("./org/name", "does not exist"),
        ("a/b/c", "does not exist"),
        ("artifact", "artifact is an ONNX artifact.*gptx run -m artifact.*gptx quantize"),
        ("loose", "holds no config.json, but a.gguf, ckpt.pt: name that file"),
        ("empty", "holds no config.json: gptx import takes"),
        ("notes.txt", "is not a file that gptx reads"),
        ("model.safetensors", "is one file of a Hugging Face folder: name the folder"),
        ("text.gguf", "is not a GGUF file"),
        ("nothing.bin", "is empty"),
    ],
)
def test_sources_that_are_something_else(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("artifact", "loose", "empty"):
        Path(folder).mkdir()
    Path("artifact/gptx.json").write_text("{}")
    for file in ("loose/a.gguf", "loose/ckpt.pt", "notes.txt", "model.safetensors", "text.gguf"):
        Path(file).write_text("something")
    Path("nothing.bin").touch()
    with pytest.raises(CheckpointError, match=said):
        import_checkpoint(source, tmp_path / "out")


def test_tokenizer_model_alone(theirs: Path, tmp_path: Path) -> None:
    source = copy(theirs, tmp_path / "spm", "tokenizer*.json", "vocab.json", "merges.txt")
    (source / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(
        CheckpointError, match=r"save_pretrained\(OUT\); then give it with --tokenizer OUT"
    ):
        import_checkpoint(str(source), tmp_path / "ours")
    import_checkpoint(str(source), tmp_path / "ours", tokenizer=theirs)


def test_a_bar_on_a_terminal_only(
    theirs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import_checkpoint(str(theirs), tmp_path / "piped")
    assert re.fullmatch(r"Reading the weights: \d+\.\d s\n", capsys.readouterr().err)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    folder = import_checkpoint(str(theirs), tmp_path / "terminal")
    out, err = capsys.readouterr()
    assert out == "" and "Reading the weights" in err and "left:" in err
    assert (folder / "model.safetensors").read_bytes() == (
        tmp_path / "piped" / "model.safetensors"
    ).read_bytes()


def test_command_line(theirs: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(import_, [str(theirs), str(tmp_path / "out")])
    assert result.exit_code == 0 and result.stdout == ""
    assert "gpt2 of 0.0M parameters, 1 layers of width 16" in result.stderr
    assert "tokenizer of 290 tokens in a vocabulary of 320" in result.stderr
    assert f"next: gptx export {tmp_path / 'out'}" in result.stderr


# --- the hub, which is a small server here --------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """A server with what huggingface_hub asks for: the list of files, and each file."""

    models: dict[str, Path] = {}
    asked: list[str] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0].strip("/")
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if name == "org/gated":
            return self.answer(
                403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"}
            )
        if name not in self.models:
            return self.answer(
                404,
                b"",
                {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
            )
        folder = self.models[name]
        if path.startswith("api/"):
            files = [
                {"rfilename": str(p.relative_to(folder))} for p in folder.rglob("*") if p.is_file()
            ]
            content = json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode()
            return self.answer(200, content, {"Content-Type": "application/json"})
        file = folder / path.split(f"/resolve/{COMMIT}/")[1]
        content = file.read_bytes()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.answer(
            206 if start else 200,
            content[start:],
            {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT},
        )

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


IMPORT_ALL = """
import sys
from gptx.errors import GptxError
from gptx_models.importers import import_checkpoint
out, *names = sys.argv[1:]
for name in names:
    try:
        print("wrote", import_checkpoint(name, f"{out}/{name}"))
    except GptxError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def hub(
    theirs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., dict[str, str]]]:
    """A function that imports models by name in another process; returns the output by name.

    HF_ENDPOINT of that process is a small server here.
    """
    home = tmp_path_factory.mktemp("hub")
    extra = copy(theirs, home / "served")
    (extra / "original").mkdir()
    (extra / "original" / "consolidated.pth").write_text("large, and not asked for")
    transformers.GPT2LMHeadModel.from_pretrained(theirs).save_pretrained(
        home / "old", safe_serialization=False
    )
    (home / "gguf").mkdir()
    (home / "gguf" / "a.gguf").write_text("GGUF")
    other = copy(theirs, home / "other")
    (other / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    Hub.models = {
        "org/tiny-gpt2": extra,
        "org/old": home / "old",
        "org/only-gguf": home / "gguf",
        "org/qwen": other,
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(out: Path, *names: str, port: int = server.server_port) -> dict[str, str]:
        Hub.asked = []
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HOME": str(home / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-c", IMPORT_ALL, str(out), *names]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return dict(zip(names, done.stdout.splitlines(), strict=True))

    yield run
    server.shutdown()
    server.server_close()


def test_hub_by_name(hub: Callable[..., dict[str, str]], theirs: Path, tmp_path: Path) -> None:
    said = hub(
        tmp_path / "first",
        "org/tiny-gpt2",
        "org/old",
        "org/missing",
        "org/gated",
        "org/only-gguf",
        "org/qwen",
    )
    first = tmp_path / "first" / "org" / "tiny-gpt2"
    assert said["org/tiny-gpt2"] == f"wrote {first}" and said["org/old"].startswith("wrote")
    assert (
        "org/missing is neither a path here nor a model on http://127.0.0.1" in said["org/missing"]
    )
    assert "org/gated is gated: accept its terms at http://127.0.0.1" in said["org/gated"]
    assert "has no config.json" in said["org/only-gguf"] and "GGUF" in said["org/only-gguf"]
    assert (
        "'qwen2', which gptx's own GPT does not cover" in said["org/qwen"]
        and "--via optimum" in said["org/qwen"]
    )
    assert not any(
        "consolidated" in line or "qwen/resolve" in line and ".safetensors" in line
        for line in Hub.asked
    )
    about = json.loads((first / "gptx_source.json").read_text())
    assert (
        about["name"] == "org/tiny-gpt2"
        and about["revision"] == COMMIT
        and about["licence"] == "mit"
    )
    assert encode(first) == encode(theirs)
    old = json.loads((tmp_path / "first" / "org" / "old" / "gptx_source.json").read_text())
    assert old["format"] == "huggingface" and "licence" not in old  # it has no model card

    # Without the network: models in the cache are read, others are an error of one sentence.
    said = hub(tmp_path / "second", "org/tiny-gpt2", "org/other", port=9)
    assert said["org/tiny-gpt2"].startswith("wrote") and Hub.asked == []
    assert "http://127.0.0.1:9 cannot be reached: check the network" in said["org/other"]
    assert sorted(p.name for p in (tmp_path / "second" / "org").iterdir()) == ["tiny-gpt2"]


@pytest.mark.parametrize(
    ("fault", "says"), [("first line\nsecond line", "first line"), ("", "OSError")]
)
def test_a_download_that_fails(
    fault: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(name: str, **options: object) -> None:
        raise OSError(fault)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(
        CheckpointError, match=rf"^downloading org/model failed \({says}\): run it again"
    ):
        import_checkpoint("org/model", tmp_path / "out")
