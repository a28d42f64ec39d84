"""The manifest of an artifact: a folder in, a Manifest out, or an ArtifactError that names everything wrong with it.

`read` checks that whatever gptx would open in the folder is listed in gptx.json, is a plain file inside the folder and has
the listed size (cheap); `check_hashes` reads every byte. Knows nothing of ONNX Runtime.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from gptx.artifact.bounds import size_problem
from gptx.artifact.folders import LFS_POINTER, MANIFEST, everything_in, kind_of, not_plain
from gptx.artifact.json_files import read_json
from gptx.errors import ArtifactError

FORMAT_VERSION = 1
GRAPH = "onnx/model.onnx"
DECODE = "onnx/decode.onnx"  # of recipes that have a second graph, for runs of a single row
CUDA = "onnx/cuda.onnx"  # of fp16: the graph that CUDA opens in place of the other, on the same weights and cache
SECOND = {"decode": DECODE, "cuda": CUDA}
PRECISIONS = ("fp32", "fp16", "int8", "int4")
CACHES = ("shared", "growing", "scatter")
CACHE_DTYPES = ("float32", "float16")
MOST_PARAMETERS = 1 << 50
REFERENCE = "gptx_reference.safetensors"
# Folders of which every file must be listed: a graph can name any file beside it as its weights.
GRAPH_FOLDERS = ("onnx", "compiled")
# All other files that gptx or another loader of the artifact opens, and the most bytes that each may have: they are read
# into memory whole. Such a file must be listed, too. What is not named here (README.md, .gitattributes) is never opened.
SIDE_FILES = {
    "config.json": 16_000_000,
    "generation_config.json": 16_000_000,
    "genai_config.json": 16_000_000,
    "tokenizer.json": 256_000_000,
    "tokenizer_config.json": 64_000_000,
    "special_tokens_map.json": 16_000_000,
    "added_tokens.json": 16_000_000,
    "chat_template.jinja": 4_000_000,
    "gptx_task.json": 16_000_000,
    REFERENCE: 16_000_000,
}
MANIFEST_MOST = 64_000_000  # bytes


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
    raw: dict[str, Any] = field(
        repr=False
    )  # gptx.json itself: quantization, source, versions, certificate

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


def read_manifest(path: str | Path) -> Manifest:
    """Read and check gptx.json and the presence and sizes of the files that it lists. Raises ArtifactError."""
    path = Path(path)
    raw = _load(path)
    problems = list(_field_problems(raw))
    if problems:
        raise ArtifactError(f"{path / MANIFEST}: {'; '.join(problems)}: export the artifact again")
    files = {
        name: FileFacts(sha256=facts["sha256"], size=facts["size"])
        for name, facts in raw["files"].items()
    }
    problems = [
        problem
        for name, facts in files.items()
        if (problem := _file_problem(path, name, facts.size))
    ]
    needed = [GRAPH, *(raw[name] for name in SECOND if raw.get(name))]
    problems += [f"{MANIFEST} does not list {name}" for name in needed if name not in files]
    if problems:
        raise ArtifactError(f"{path} is not a whole artifact: {some(problems)}")
    unlisted = sorted(_readable(path) - files.keys())
    if unlisted:
        problems = [f"{name!s:.200} is not among {MANIFEST}'s files" for name in unlisted]
        raise ArtifactError(
            f"{path} holds files that nobody vouches for: {some(problems)}: copy the artifact again"
        )
    tokens = raw["tokens"]
    return Manifest(
        path=path,
        gptx_version=raw["gptx_version"],
        precision=raw["precision"],
        cache=raw["cache"],
        cache_dtype=raw["cache_dtype"],
        prefill_chunk=raw["prefill_chunk"],
        model=Shape(
            **{
                name: raw["model"][name]
                for name in Shape.__dataclass_fields__
                if name in raw["model"]
            }
        ),
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

    Raises ArtifactError, naming every file that differs.
    """
    changed = []
    for name, facts in manifest.files.items():
        try:
            found = _sha256(
                manifest.path / name,
                facts.size,
                lambda n, name=name: progress and progress(name, n),
            )
        except OSError as error:
            changed.append(f"{name} cannot be read ({error.strerror})")
            continue
        if found != facts.sha256:
            changed.append(
                f"{name} has sha256 {found[:12] or 'of other bytes'}..., expected {facts.sha256[:12]}..."
            )
    if changed:
        raise ArtifactError(
            f"{manifest.path} was changed after it was made: {some(changed)}: copy it again"
        )


def _sha256(file: Path, size: int, progress: Callable[[int], object]) -> str:
    """Of exactly `size` bytes; "" for a file that has fewer or more by now. Never waits for a pipe, and never reads on."""
    import hashlib

    digest, left = hashlib.sha256(), size
    with open(
        os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
    ) as opened:
        if os.fstat(opened.fileno()).st_size != size:
            return ""
        while left and (block := opened.read(min(1 << 20, left))):
            digest.update(block)
            left -= len(block)
            progress(len(block))
    return "" if left else digest.hexdigest()


def _readable(path: Path) -> set[str]:
    """The files in the folder that a loader would open, whether they are listed or not (links and odd files too)."""
    found = {name for name in SIDE_FILES if os.path.lexists(path / name)}
    for folder in GRAPH_FOLDERS:
        found |= {Path(one).relative_to(path).as_posix() for one in everything_in(path / folder)}
    return found


def some(words: list[str]) -> str:
    """At most twenty: a damaged manifest can list a million."""
    return "; ".join(words[:20]) + (f"; and {len(words) - 20} more" if len(words) > 20 else "")


def _load(path: Path) -> dict[str, Any]:
    kind = kind_of(path)
    if kind == "missing":
        raise ArtifactError(
            f"{path} does not exist; an artifact is the folder that gptx export writes"
        )
    if kind == "file":
        raise ArtifactError(
            f"{path} is a file, and an artifact is a folder with {MANIFEST} and {GRAPH} in it"
        )
    if (path / GRAPH).exists() and kind != "artifact":
        raise ArtifactError(
            f"{path} holds {GRAPH} and no {MANIFEST}: another tool made it, or the copy is not whole"
        )
    if kind == "checkpoint":
        raise ArtifactError(
            f"{path} is a checkpoint folder, not an artifact: gptx export {path} OUT makes one of it"
        )
    if kind == "adapter":
        raise ArtifactError(
            f"{path} is a LoRA adapter, not an artifact: gptx export {path} OUT makes one with its base"
        )
    if kind == "folder":
        raise ArtifactError(f"{path} is not an artifact: it holds no {MANIFEST}")
    try:
        if problem := not_plain(path, MANIFEST):
            raise ArtifactError(f"{path}: {problem}")
        if (path / MANIFEST).stat().st_size > MANIFEST_MOST:
            raise ArtifactError(
                f"{path / MANIFEST} has more than {MANIFEST_MOST:,} bytes: copy the artifact again"
            )
    except OSError as error:
        raise ArtifactError(f"cannot read {path / MANIFEST}: {error.strerror}") from error
    raw = read_json(path / MANIFEST, ArtifactError, advice="copy the artifact again")
    if raw.get("format") != "gptx":
        raise ArtifactError(f'{path / MANIFEST} is not a gptx manifest: it lacks "format": "gptx"')
    version = raw.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path / MANIFEST} has format version {version} (written by gptx {raw.get('gptx_version')}), and this "
            f"gptx reads up to {FORMAT_VERSION}: update gptx"
        )
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ArtifactError(
            f"{path / MANIFEST} has format_version {version!r}, expected {FORMAT_VERSION}"
        )
    return raw


def _field_problems(raw: dict[str, Any]):
    for name, allowed in (
        ("precision", PRECISIONS),
        ("cache", CACHES),
        ("cache_dtype", CACHE_DTYPES),
    ):
        if raw.get(name) not in allowed:
            yield f"{name} is {raw.get(name)!r}, expected one of {', '.join(allowed)}"
    if not isinstance(raw.get("gptx_version"), str):
        yield f"gptx_version is {raw.get('gptx_version')!r}, expected a string"
    if problem := size_problem("prefill_chunk", raw.get("prefill_chunk")):
        yield problem
    optional = ("compiled", "quantization", "source", "certificate")
    for name in ("model", "tokens", "files", *optional):
        if name in optional and not raw.get(name):
            continue
        if not isinstance(raw.get(name), dict):
            yield f"{name} is {raw.get(name)!r}, expected an object"
            return
    certificate = raw.get("certificate") or {}
    for name in ("figures", "consistency", "limits", "greedy", "environment", "verified"):
        part = certificate.get(name, {})
        if not isinstance(part, dict):
            yield f"certificate.{name} is {part!a:.80}, expected an object"
            continue
        for key, value in part.items() if name != "environment" else ():
            # verify says more of a limit that is none
            if (
                value is not None
                and not _figure(value)
                and (name != "limits" or isinstance(value, int))
            ):
                yield f"certificate.{name}.{key!a:.80} is {value!a:.80}, expected a number"
    for name in ("passed", "accepted"):
        if not isinstance(certificate.get(name, False), bool):
            yield f"certificate.{name} is {certificate[name]!a:.80}, expected true or false"
    compiled = raw.get("compiled") or {}
    for where, part, name in (
        ("certificate", certificate, "outside"),
        ("certificate", certificate, "decode"),
        ("compiled", compiled, "cpu_features"),
    ):
        texts = part.get(name) or []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            yield f"{where}.{name} is {texts!a:.80}, expected a list of texts"
    links = certificate.get("chain") or []
    if not isinstance(links, list) or not all(isinstance(link, dict) for link in links):
        yield f"certificate.chain is {links!a:.80}, expected a list of objects"
    for name, graph in SECOND.items():
        if raw.get(name) not in (None, graph):
            yield f"{name} is {raw[name]!r}, expected {graph!r} or nothing"
    for name in Shape.__dataclass_fields__:
        if name == "n_class" and raw["model"].get(name, 0) == 0:
            continue
        value = raw["model"].get(name)
        if name == "n_parameters" and not (_positive(value) and value <= MOST_PARAMETERS):
            yield f"model.{name} is {value!a:.80}, expected a positive whole number"
        elif name != "n_parameters" and (problem := size_problem(f"model.{name}", value)):
            yield problem
    tokens = raw["tokens"]
    for name in ("vocab_size", "bos", "pad"):
        if tokens.get(name) is not None and not isinstance(tokens[name], int):
            yield f"tokens.{name} is {tokens[name]!r}, expected a number or null"
    eos = tokens.get("eos") or []
    if not isinstance(eos, list) or not all(isinstance(item, int) for item in eos):
        yield f"tokens.eos is {eos!r}, expected a list of token ids"
    for name, facts in raw["files"].items():
        whole = (
            isinstance(facts, dict)
            and isinstance(facts.get("sha256"), str)
            and _natural(facts.get("size"))
        )
        if not whole:
            yield f"files[{name!a:.80}] is {facts!a:.80}, expected its sha256 and size"
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            yield f"files names {name!a:.80}, which lies outside the folder"
        elif (
            not name.isprintable()
            or PurePosixPath(name).as_posix() != name
            or name in (".", MANIFEST)
        ):
            yield f"files names {name!a:.80}, which is no name of a file in the folder"
        elif whole and facts["size"] > SIDE_FILES.get(name, facts["size"]):
            yield f"{name} has {facts['size']:,} bytes, expected at most {SIDE_FILES[name]:,}"


def _positive(value: Any) -> bool:
    return _natural(value) and value > 0


def _figure(value: Any) -> bool:
    """A number that a float can be."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and not (isinstance(value, int) and value > 2**63)
    )


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _file_problem(path: Path, name: str, size: int) -> str | None:
    file = path / name
    try:
        if problem := not_plain(path, name):
            return problem
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
