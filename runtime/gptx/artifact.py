"""The manifest of an artifact: a folder in, a Manifest out, or an ArtifactError that names everything wrong with it.

Sizes are checked when it is read (cheap); `check_hashes` reads every byte. Knows nothing of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptx.errors import ArtifactError
from gptx.folders import LFS_POINTER, MANIFEST, kind_of
from gptx.json_files import read_json

FORMAT_VERSION = 1
GRAPH = "onnx/model.onnx"
DECODE = "onnx/decode.onnx"  # of recipes that have a second graph, for runs of a single row
CUDA = "onnx/cuda.onnx"  # of fp16: the graph that CUDA opens in place of the other, on the same weights and cache
SECOND = {"decode": DECODE, "cuda": CUDA}
PRECISIONS = ("fp32", "fp16", "int8", "int4")
CACHES = ("shared", "growing", "scatter")
CACHE_DTYPES = ("float32", "float16")
MOST_LAYERS = 10_000  # a damaged number must not make names for a billion


@dataclass(frozen=True)
class Shape:
    """The model's shape, as far as running it needs."""

    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    n_ctx: int
    vocab_size: int
    n_parameters: int
    n_class: int = 0  # of a classification head; 0: a language model

    @property
    def n_logits(self) -> int:
        return self.n_class or self.vocab_size


@dataclass(frozen=True)
class Tokens:
    """`vocab_size`: ids that the tokenizer knows, which a padded model exceeds; None where there is no tokenizer."""

    vocab_size: int | None
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


@dataclass(frozen=True)
class FileFacts:
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    path: Path
    gptx_version: str
    precision: str
    cache: str
    cache_dtype: str
    prefill_chunk: int
    model: Shape
    tokens: Tokens
    files: dict[str, FileFacts]
    raw: dict[str, Any] = field(repr=False)  # gptx.json itself: quantization, source, versions, certificate

    @property
    def graph(self) -> Path:
        return self.path / GRAPH

    @property
    def decode(self) -> Path | None:
        """The second graph, of recipes that have one."""
        return self.path / DECODE if self.raw.get("decode") else None

    @property
    def cuda(self) -> Path | None:
        """The graph for CUDA, where there is one beside the one for every device."""
        return self.path / CUDA if self.raw.get("cuda") else None

    @property
    def certificate(self) -> dict[str, Any]:
        """The parity certificate; empty where the artifact carries none."""
        return self.raw.get("certificate") or {}


def read(path: str | Path) -> Manifest:
    """Read and check gptx.json and the presence and sizes of the files that it lists. Raises ArtifactError."""
    path = Path(path)
    raw = _load(path)
    problems = list(_field_problems(raw))
    if problems:
        raise ArtifactError(f"{path / MANIFEST}: {'; '.join(problems)}: export the artifact again")
    files = {name: FileFacts(sha256=facts["sha256"], size=facts["size"]) for name, facts in raw["files"].items()}
    problems = [problem for name, facts in files.items() if (problem := _file_problem(path, name, facts.size))]
    needed = [GRAPH, *(raw[name] for name in SECOND if raw.get(name))]
    problems += [f"{MANIFEST} does not list {name}" for name in needed if name not in files]
    if problems:
        raise ArtifactError(f"{path} is not a whole artifact: {'; '.join(problems)}")
    tokens = raw["tokens"]
    return Manifest(
        path=path,
        gptx_version=raw["gptx_version"],
        precision=raw["precision"],
        cache=raw["cache"],
        cache_dtype=raw["cache_dtype"],
        prefill_chunk=raw["prefill_chunk"],
        model=Shape(**{name: raw["model"][name] for name in Shape.__dataclass_fields__ if name in raw["model"]}),
        tokens=Tokens(
            vocab_size=tokens.get("vocab_size"),
            bos=tokens.get("bos"),
            eos=tuple(tokens.get("eos") or ()),
            pad=tokens.get("pad"),
        ),
        files=files,
        raw=raw,
    )


def check_hashes(manifest: Manifest, progress: Callable[[str, int], None] | None = None) -> None:
    """Compare the sha256 of every listed file. `progress` is called with a name and the bytes read since the last call.

    Raises ArtifactError, naming every file that differs, and every graph or weight file that is not listed.
    """
    import hashlib

    folders = (manifest.path / "onnx", manifest.path / "compiled")
    there = [file.relative_to(manifest.path).as_posix() for folder in folders for file in folder.glob("*")]
    changed = [f"{name} is not among gptx.json's files" for name in sorted(set(there) - set(manifest.files))]
    for name, facts in manifest.files.items():
        digest = hashlib.sha256()
        with (manifest.path / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                if progress:
                    progress(name, len(block))
        if digest.hexdigest() != facts.sha256:
            changed.append(f"{name} has sha256 {digest.hexdigest()[:12]}..., expected {facts.sha256[:12]}...")
    if changed:
        raise ArtifactError(f"{manifest.path} was changed after it was made: {'; '.join(changed)}: copy it again")


def _load(path: Path) -> dict[str, Any]:
    kind = kind_of(path)
    if kind == "missing":
        raise ArtifactError(f"{path} does not exist; an artifact is the folder that gptx export writes")
    if kind == "file":
        raise ArtifactError(f"{path} is a file, and an artifact is a folder with {MANIFEST} and {GRAPH} in it")
    if (path / GRAPH).exists() and kind != "artifact":
        raise ArtifactError(f"{path} holds {GRAPH} and no {MANIFEST}: another tool made it, or the copy is not whole")
    if kind == "checkpoint":
        raise ArtifactError(f"{path} is a checkpoint folder, not an artifact: gptx export {path} OUT makes one of it")
    if kind == "adapter":
        raise ArtifactError(
            f"{path} is a LoRA adapter, not an artifact: gptx export {path} OUT makes one with its base"
        )
    if kind == "folder":
        raise ArtifactError(f"{path} is not an artifact: it holds no {MANIFEST}")
    raw = read_json(path / MANIFEST, ArtifactError, advice="copy the artifact again")
    if raw.get("format") != "gptx":
        raise ArtifactError(f'{path / MANIFEST} is not a gptx manifest: it lacks "format": "gptx"')
    version = raw.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path / MANIFEST} has format version {version} (written by gptx {raw.get('gptx_version')}), and this "
            f"gptx reads up to {FORMAT_VERSION}: update gptx"
        )
    if version != FORMAT_VERSION:
        raise ArtifactError(f"{path / MANIFEST} has format_version {version!r}, expected {FORMAT_VERSION}")
    return raw


def _field_problems(raw: dict[str, Any]):
    for name, allowed in (("precision", PRECISIONS), ("cache", CACHES), ("cache_dtype", CACHE_DTYPES)):
        if raw.get(name) not in allowed:
            yield f"{name} is {raw.get(name)!r}, expected one of {', '.join(allowed)}"
    if not isinstance(raw.get("gptx_version"), str):
        yield f"gptx_version is {raw.get('gptx_version')!r}, expected a string"
    if not _positive(raw.get("prefill_chunk")):
        yield f"prefill_chunk is {raw.get('prefill_chunk')!r}, expected a positive number"
    optional = ("compiled", "quantization", "source", "certificate")
    for name in ("model", "tokens", "files", *optional):
        if name in optional and not raw.get(name):
            continue
        if not isinstance(raw.get(name), dict):
            yield f"{name} is {raw.get(name)!r}, expected an object"
            return
    certificate = raw.get("certificate") or {}
    for name in ("figures", "consistency", "limits", "greedy", "environment"):
        if not isinstance(certificate.get(name, {}), dict):
            yield f"certificate.{name} is {certificate[name]!r}, expected an object"
    links = certificate.get("chain") or []
    if not isinstance(links, list) or not all(isinstance(link, dict) for link in links):
        yield f"certificate.chain is {links!r}, expected a list of objects"
    for name, graph in SECOND.items():
        if raw.get(name) not in (None, graph):
            yield f"{name} is {raw[name]!r}, expected {graph!r} or nothing"
    for name in Shape.__dataclass_fields__:
        if name == "n_class" and raw["model"].get(name, 0) == 0:
            continue
        if not _positive(raw["model"].get(name)):
            yield f"model.{name} is {raw['model'].get(name)!r}, expected a positive number"
        elif name == "n_layer" and raw["model"][name] > MOST_LAYERS:
            yield f"model.n_layer is {raw['model'][name]}, expected at most {MOST_LAYERS}"
    tokens = raw["tokens"]
    for name in ("vocab_size", "bos", "pad"):
        if tokens.get(name) is not None and not isinstance(tokens[name], int):
            yield f"tokens.{name} is {tokens[name]!r}, expected a number or null"
    eos = tokens.get("eos") or []
    if not isinstance(eos, list) or not all(isinstance(item, int) for item in eos):
        yield f"tokens.eos is {eos!r}, expected a list of token ids"
    for name, facts in raw["files"].items():
        if (
            not isinstance(facts, dict)
            or not isinstance(facts.get("sha256"), str)
            or not isinstance(facts.get("size"), int)
        ):
            yield f"files[{name!r}] is {facts!r}, expected its sha256 and size"
        if Path(name).is_absolute() or ".." in Path(name).parts:
            yield f"files names {name!r}, which lies outside the folder"


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _file_problem(path: Path, name: str, size: int) -> str | None:
    file = path / name
    try:
        found = file.stat().st_size
        if found == size:
            return None
        with file.open("rb") as opened:
            start = opened.read(len(LFS_POINTER))
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    if start == LFS_POINTER:
        return f"{name} is a Git LFS pointer, not the file: run git lfs pull in that clone"
    how = "is cut short" if found < size else "was changed"
    return f"{name} {how}: {found:,} bytes, expected {size:,}: copy it again"
