"""The manifest of an artifact, gptx.json: a folder in, a Manifest out.

`read_manifest` checks the fields of gptx.json. It also checks that all listed files are there in
their listed sizes, and that the folder holds no unlisted file that a loader would open. hashes.py
compares the files' contents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptx.artifact.folders import MANIFEST, kind_of, not_plain
from gptx.artifact.json_files import read_json
from gptx.artifact.layout import CUDA, DECODE, GRAPH, MANIFEST_MOST, SECOND_GRAPHS, STEP
from gptx.artifact.listed_files import file_problem, loadable_files
from gptx.artifact.manifest_fields import field_problems
from gptx.errors import ArtifactError, first_of

FORMAT_VERSION = 1
MOST_PROBLEMS = 20  # named in one message: a damaged manifest can list a million files


@dataclass(frozen=True)
class Shape:
    """The sizes of the model that the runtime needs."""

    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    n_ctx: int
    vocab_size: int
    n_parameters: int
    n_class: int = 0  # outputs of the classification head; 0: a language model

    @property
    def n_logits(self) -> int:
        """The last axis of the logits: n_class, or vocab_size for a language model."""
        return self.n_class or self.vocab_size


@dataclass(frozen=True)
class Tokens:
    """The tokenizer's facts in the manifest.

    vocab_size: the number of ids that the tokenizer knows; None if there is no tokenizer. The
    model's own vocab_size may be larger, if its embedding is padded.
    """

    vocab_size: int | None
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


@dataclass(frozen=True)
class FileFacts:
    """What gptx.json says of a file. size: bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """gptx.json, checked. The artifact format in docs/ explains its fields."""

    path: Path  # the artifact's folder
    gptx_version: str
    precision: str
    cache: str
    cache_dtype: str
    prefill_chunk: int
    model: Shape
    tokens: Tokens
    files: dict[str, FileFacts]  # by path relative to the folder
    raw: dict[str, Any] = field(repr=False)  # the whole object in gptx.json

    @property
    def graph(self) -> Path:
        """The main graph; see native_only."""
        return self.path / GRAPH

    @property
    def native_only(self) -> bool:
        """True if the artifact has a step graph and no main graph: only native operators run it."""
        return GRAPH not in self.files and self.step is not None

    @property
    def decode(self) -> Path | None:
        """The graph for runs of a single row; None if the artifact has none."""
        return self.path / DECODE if self.raw.get("decode") else None

    @property
    def cuda(self) -> Path | None:
        """The graph for CUDA; None if the artifact has none."""
        return self.path / CUDA if self.raw.get("cuda") else None

    @property
    def step(self) -> Path | None:
        """The graph of native operators, for the CPU; None if the artifact has none."""
        return self.path / STEP if self.raw.get("step") else None

    @property
    def step_cache_dtype(self) -> str:
        """The type of keys and values in the step graph. Older artifacts do not state it."""
        rounded = self.precision != "fp32"
        return self.raw.get("step_cache_dtype") or ("float16" if rounded else "float32")

    @property
    def kernel_order(self) -> int:
        """The order of sums of the native operators that the step graph was made for."""
        return self.raw.get("kernel_order", 1)

    @property
    def certificate(self) -> dict[str, Any]:
        """The parity certificate; {} if the artifact has none."""
        return self.raw.get("certificate") or {}


def read_manifest(path: str | Path) -> Manifest:
    """Read and check gptx.json, and the presence and sizes of the files in the folder.

    Raises ArtifactError, which names everything that is wrong (at most MOST_PROBLEMS things).
    """
    path = Path(path)
    raw = _read_json(path)
    problems = list(field_problems(raw, Shape.__dataclass_fields__))
    if problems:
        raise ArtifactError(f"{path / MANIFEST}: {'; '.join(problems)}: export the artifact again")
    manifest = _manifest(path, raw)
    _check_listed_files(manifest)
    _check_no_others(manifest)
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    """The object in gptx.json. Raises ArtifactError for another format or format version."""
    _check_kind(path)
    _check_manifest_file(path)
    raw = read_json(path / MANIFEST, ArtifactError, advice="copy the artifact again")
    if raw.get("format") != "gptx":
        raise ArtifactError(f'{path / MANIFEST} is not a gptx manifest: it lacks "format": "gptx"')
    version = raw.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path / MANIFEST} has format version {version} (written by gptx "
            f"{raw.get('gptx_version')}), and this gptx reads up to {FORMAT_VERSION}: update gptx"
        )
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ArtifactError(
            f"{path / MANIFEST} has format_version {version!r}, expected {FORMAT_VERSION}"
        )
    return raw


def _check_kind(path: Path) -> None:
    """Raise ArtifactError if there is no artifact at `path`, and say what is there instead."""
    kind = kind_of(path)
    if kind == "artifact":
        return
    if kind == "missing":
        raise ArtifactError(
            f"{path} does not exist; an artifact is the folder that gptx export writes"
        )
    if kind == "file":
        raise ArtifactError(
            f"{path} is a file, and an artifact is a folder with {MANIFEST} and {GRAPH} in it"
        )
    if (path / GRAPH).exists():
        raise ArtifactError(
            f"{path} holds {GRAPH} and no {MANIFEST}: "
            "another tool made this folder, or a copy is incomplete"
        )
    if kind == "checkpoint":
        raise ArtifactError(
            f"{path} is a checkpoint folder, not an artifact: "
            f"gptx export {path} OUT makes an artifact of it"
        )
    if kind == "adapter":
        raise ArtifactError(
            f"{path} is a LoRA adapter, not an artifact: "
            f"gptx export {path} OUT makes an artifact of it and its base"
        )
    raise ArtifactError(f"{path} is not an artifact: it holds no {MANIFEST}")


def _check_manifest_file(path: Path) -> None:
    """Raise ArtifactError if gptx.json is not a plain file, or is too large."""
    try:
        if problem := not_plain(path, MANIFEST):
            raise ArtifactError(f"{path}: {problem}")
        if (path / MANIFEST).stat().st_size > MANIFEST_MOST:
            raise ArtifactError(
                f"{path / MANIFEST} has more than {MANIFEST_MOST:,} bytes: copy the artifact again"
            )
    except OSError as error:
        raise ArtifactError(f"cannot read {path / MANIFEST}: {error.strerror}") from error


def _check_listed_files(manifest: Manifest) -> None:
    """Raise ArtifactError if a listed file is missing or has another size."""
    path, files = manifest.path, manifest.files
    problems = [
        problem
        for name, facts in files.items()
        if (problem := file_problem(path, name, facts.size))
    ]
    main = [] if manifest.native_only else [GRAPH]
    needed = [*main, *(manifest.raw[name] for name in SECOND_GRAPHS if manifest.raw.get(name))]
    problems += [f"{MANIFEST} does not list {name}" for name in needed if name not in files]
    if problems:
        raise ArtifactError(
            f"{path} is not a whole artifact: {first_of(problems, MOST_PROBLEMS, '; ')}"
        )


def _check_no_others(manifest: Manifest) -> None:
    """Raise ArtifactError if a loader would open files in the folder that are not listed."""
    unlisted = sorted(loadable_files(manifest.path) - manifest.files.keys())
    if unlisted:
        problems = [f"{name!s:.200} is not among {MANIFEST}'s files" for name in unlisted]
        raise ArtifactError(
            f"{manifest.path} holds files that gptx.json does not list: "
            f"{first_of(problems, MOST_PROBLEMS, '; ')}: copy the artifact again"
        )


def _manifest(path: Path, raw: dict[str, Any]) -> Manifest:
    """The Manifest of a gptx.json whose fields were checked."""
    sizes = {
        name: raw["model"][name] for name in Shape.__dataclass_fields__ if name in raw["model"]
    }
    tokens = raw["tokens"]
    return Manifest(
        path=path,
        gptx_version=raw["gptx_version"],
        precision=raw["precision"],
        cache=raw["cache"],
        cache_dtype=raw["cache_dtype"],
        prefill_chunk=raw["prefill_chunk"],
        model=Shape(**sizes),
        tokens=Tokens(
            vocab_size=tokens.get("vocab_size"),
            bos=tokens.get("bos"),
            eos=tuple(tokens.get("eos") or ()),
            pad=tokens.get("pad"),
        ),
        files={
            name: FileFacts(sha256=facts["sha256"], size=facts["size"])
            for name, facts in raw["files"].items()
        },
        raw=raw,
    )
