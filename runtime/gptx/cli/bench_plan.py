"""Check the options of gptx bench before anything is measured: options in, a Work out.

Combinations of options that cannot be measured are errors here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptx.artifact.folders import check_new_file, kind_of
from gptx.artifact.manifest import Manifest, read_manifest
from gptx.bench import prompts
from gptx.bench.machine import machine
from gptx.bench.peers import Contender, contenders
from gptx.bench.quality import QualityPlan, plan_quality
from gptx.bench.speed import SpeedPlan
from gptx.cli.options import refuse_without
from gptx.errors import UsageError
from gptx.model import DEFAULT_MODEL
from gptx.ort.cuda import need_cuda
from gptx.system.cpu import cpu_cores

PROMPT_TOKENS = (128, 512)
NEW_TOKENS = 64
COLD_TOKENS = 128  # length of the first prompt after loading
SCORED_TOKENS = 8192  # of --text, unless --tokens is given
WINDOW = 1024  # tokens that are scored at once, unless --window is given


@dataclass(frozen=True)
class Request:
    """The options of the command line; see `gptx bench --help`."""

    artifact: Path | None
    against: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    new_tokens: int | None
    batch: int
    rounds: int
    repeats: int
    device: str
    threads: int | None
    quality: bool
    reference: Path | None
    text: Path | None
    tokens: int | None
    window: int | None
    json_file: Path | None
    png_file: Path | None
    force: bool


@dataclass(frozen=True)
class Work:
    """What to measure, and on which machine."""

    request: Request
    engines: list[Contender]
    source: prompts.Source
    speed: SpeedPlan
    quality: QualityPlan | None
    machine: dict[str, Any]  # see gptx.bench.machine
    kernels: dict[str, str]  # by engine label: how its weights are stored
    notes: list[str]  # what differs from the defaults


def plan(request: Request) -> Work:
    """Check `request`, and fill in the defaults of options that were not given.

    Raises UsageError, ArtifactError, PromptError, OutputError or ProviderError if something cannot
    be measured or written.
    """
    _check_options(request)
    _check_files(request)
    manifest = read_manifest(request.artifact or DEFAULT_MODEL)
    if manifest.model.n_class:
        raise UsageError(
            f"{manifest.path} has a classification head and generates no text:"
            " give a language model"
        )
    engines = contenders(manifest.path, request.against)
    _check_engines(engines, request)
    if request.device == "cuda":
        need_cuda()
    source = prompts.source(manifest, request.text)
    speed = _plan_speed(request, manifest)
    return Work(
        request,
        engines,
        source,
        speed,
        _plan_quality(request, manifest, engines, source),
        machine(program="gptx", device=request.device),
        {one.label: words for one in engines if (words := _weights_in_words(one))},
        _notes(request, speed, manifest.model.n_ctx),
    )


def _check_options(request: Request) -> None:
    if not request.rounds and not request.quality:
        raise UsageError("--rounds 0 measures no speed: give --quality, or at least one round")
    if not request.rounds:
        refuse_without("rounds of speed", "prompt_tokens", "new_tokens", "batch", "repeats")
    if request.reference and not request.quality:
        raise UsageError("--reference is what --quality compares with: give both")
    if (request.tokens or request.window) and not request.quality:
        raise UsageError(
            "--tokens and --window say how --quality scores a text: give --quality too"
        )


def _check_files(request: Request) -> None:
    json_file, png_file = request.json_file, request.png_file
    if not json_file and not png_file:
        refuse_without("--json or --picture", "force")
    if png_file:
        if png_file.suffix.lower() != ".png":
            raise UsageError(
                f"--picture {png_file}: it is a PNG file, so let its name end with .png"
            )
        if json_file and json_file.resolve() == png_file.resolve():
            raise UsageError(f"--json and --picture are both {png_file}: name two files")
        if not request.rounds:
            raise UsageError("--picture draws speed, and --rounds 0 measures none")
        from gptx.bench.picture import need_matplotlib

        need_matplotlib()
    for file in filter(None, (json_file, png_file)):
        check_new_file(file, force=request.force)


def _check_engines(engines: Sequence[Contender], request: Request) -> None:
    for one in engines:
        if one.does.load is None and not request.quality:
            raise UsageError(
                f"{one.label} is for --quality only, which was not asked for: add it, or leave the"
                " peer out"
            )
        if one.does.logits is None and not request.rounds:
            raise UsageError(
                f"{one.label} is for speed only, and --rounds 0 measures none: leave it out"
            )
        if request.device not in one.does.devices:
            raise UsageError(
                f"{one.label} is measured on the CPU only: leave it out, or take --device cpu"
            )


def _plan_speed(request: Request, manifest: Manifest) -> SpeedPlan:
    n_ctx = manifest.model.n_ctx
    new_tokens = request.new_tokens or min(NEW_TOKENS, n_ctx // 2)
    room = n_ctx - new_tokens - 1
    lengths = _lengths(request.prompt_tokens, room=room)
    return SpeedPlan(
        prompt_tokens=lengths,
        cold=min(COLD_TOKENS, room),
        new_tokens=new_tokens,
        rounds=request.rounds,
        repeats=request.repeats,
        batch=request.batch,
        threads=request.threads or cpu_cores(),
        ends=list(manifest.tokens.eos),
        device=request.device,
    )


def _notes(request: Request, speed: SpeedPlan, n_ctx: int) -> list[str]:
    lengths = speed.prompt_tokens
    if not request.rounds or request.prompt_tokens or lengths == list(PROMPT_TOKENS):
        return []
    return [
        f"the context holds {n_ctx} tokens, so prompts have {_and(lengths)} tokens (not"
        f" {_and(PROMPT_TOKENS)}), and {speed.new_tokens} are generated"
    ]


def _lengths(given: tuple[int, ...], *, room: int) -> list[int]:
    """The prompt lengths, ascending. Default: PROMPT_TOKENS, cut to `room` tokens."""
    beyond = next((n for n in given if n > room), None)
    if beyond is not None:
        raise UsageError(
            f"a prompt of {beyond} tokens and the new ones do not fit into the context: at most"
            f" {room}"
        )
    if room < 1:
        raise UsageError("--new-tokens leaves no room for a prompt in the context: give fewer")
    return sorted(set(given) or {min(n, room) for n in PROMPT_TOKENS})


def _plan_quality(
    request: Request, manifest: Manifest, engines: Sequence[Contender], source: prompts.Source
) -> QualityPlan | None:
    n_ctx = manifest.model.n_ctx
    if request.window and request.window > n_ctx:
        raise UsageError(
            f"--window is {request.window}, more than the {n_ctx} tokens that the context holds:"
            " give fewer"
        )
    if not request.quality:
        return None
    return plan_quality(
        manifest,
        engines,
        source,
        request.reference,
        window=request.window or WINDOW,
        tokens=request.tokens or (SCORED_TOKENS if request.text else None),
    )


def _weights_in_words(one: Contender) -> str:
    """How an artifact's weights are stored, and the processor that it was chosen for.

    "" for other engines' checkpoints.
    """
    if kind_of(one.path) != "artifact":
        return ""
    manifest = read_manifest(one.path)
    quantization = manifest.raw.get("quantization") or {}
    recipe = quantization.get("scheme", manifest.precision)
    cpu = (quantization.get("cpu") or {}).get("name")
    return f"weights in {recipe}" + (f", chosen for {cpu}" if cpu else "")


def _and(lengths: Sequence[int]) -> str:
    return " and ".join(map(str, lengths))
