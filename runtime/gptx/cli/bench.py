"""gptx bench: an artifact beside other engines on this machine; tables on standard output, JSON and a picture in files.

What is measured and how stands in gptx.bench; here the options, the order of things and the files that are written.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptx.cli.options import refuse_without, threads_option
from gptx.cli.output import note, write_out
from gptx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptx.bench.peers import Contender
    from gptx.bench.speed import Result

SEVERAL = ("--against", "--prompt-tokens")
LENGTHS = (128, 512)
NEW = 64
COLD = 128  # tokens of the first prompt after loading
SCORED = 8192  # tokens of --text, where --tokens does not say
WINDOW = 1024  # of them at once, where --window does not


class Greedy(click.Command):
    """Options that take all that follows up to the next option: --against A B --prompt-tokens 128 512."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spelled: list[str] = []
        several = ""
        for before, arg in zip(["", *args], args):
            again = several and not arg.startswith("-") and before != several
            spelled += [several, arg] if again else [arg]
            if arg.startswith("-"):
                several = arg if arg in SEVERAL else ""
        return super().parse_args(ctx, spelled)


@click.command(cls=Greedy)
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@click.option(
    "--against", multiple=True, metavar="PEER ...", help="NAME[:PATH[:VARIANT]], see above."
)
@click.option(
    "--prompt-tokens",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N ...",
    help="Prompt lengths (128 512).",
)
@click.option(
    "--new-tokens", type=click.IntRange(min=1), metavar="N", help="After the first one (64)."
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Rows together; 1: no batch.",
)
@click.option(
    "--rounds", type=click.IntRange(min=0), default=3, show_default=True, help="0: --quality only."
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Runs of a length in a round.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where all engines compute.",
)
@threads_option
@click.option("--quality", is_flag=True, help="Perplexity, KL and top-1 too.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="ARTIFACT",
    help="What is fp32, for --quality.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts and scored text are cut from it.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=3),
    metavar="N",
    help="Score at most so many of the text (8192).",
)
@click.option(
    "--window",
    type=click.IntRange(min=3),
    metavar="N",
    help="Tokens of the text scored at once (1024).",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write all figures.",
)
@click.option(
    "--picture", "png_file", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw them."
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
def bench(
    artifact: Path | None,
    *,
    against: tuple[str, ...],
    prompt_tokens: tuple[int, ...],
    new_tokens: int | None,
    batch: int,
    rounds: int,
    repeats: int,
    device: str,
    threads: int | None,
    quality: bool,
    reference: Path | None,
    text: Path | None,
    tokens: int | None,
    window: int | None,
    json_file: Path | None,
    png_file: Path | None,
    force: bool,
) -> None:
    """Measure ARTIFACT (or the model that ships with gptx): prefill, decode, batch, memory, loading, how far decoding is
    from what the memory's speed allows; on the CPU or with CUDA, beside PEERs, each in processes of its own.

    \b
    gptx:ARTIFACT                 another artifact
    genai[:ARTIFACT]              onnxruntime-genai; default: the same artifact
    optimum[:ARTIFACT]            optimum-onnx; default: the same artifact
    transformers:CHECKPOINT[:DTYPE]
    ctranslate2:CHECKPOINT[:TYPE] converted first (int8, int8_float32, ...)
    llamacpp:FILE.gguf            llama-cpp-python
    openvino:FOLDER[:f32]         an IR folder, as optimum-intel writes it;
                                  without :f32 bf16 where the CPU has it
    torch:CHECKPOINT              gptx's own PyTorch module, --quality only
    torchcompile:CHECKPOINT[:DTYPE]
                                  transformers: static cache, torch.compile

    With --device cuda: gptx, transformers and torchcompile.

    Example: gptx bench smollm2-int8 --against genai llamacpp:smollm2.gguf --prompt-tokens 128 512 --json speed.json
    """
    from gptx.artifact.folders import check_new_file, write_file
    from gptx.artifact.manifest import read_manifest
    from gptx.bench import prompts, speed
    from gptx.bench import quality as qualities
    from gptx.bench.machine import lines, machine
    from gptx.bench.peers import contenders
    from gptx.cli import bench_report as report
    from gptx.model import DEFAULT_MODEL
    from gptx.ort.cuda import need_cuda
    from gptx.system.cpu import cpu_cores

    _check_combination(
        rounds=rounds,
        quality=quality,
        reference=reference,
        scored=tokens or window,
        picture=png_file,
        json=json_file,
    )
    for file in filter(None, (json_file, png_file)):
        check_new_file(file, force=force)
    manifest = read_manifest(artifact or DEFAULT_MODEL)
    if manifest.model.n_class:
        raise UsageError(
            f"{manifest.path} has a classification head and generates no text: give a language model"
        )
    engines = contenders(manifest.path, against)
    unmeasured = next((one for one in engines if one.does.load is None and not quality), None)
    if unmeasured is not None:
        raise UsageError(
            f"{unmeasured.label} is for --quality only, which was not asked for: add it, or leave the peer out"
        )
    unjudged = next((one for one in engines if one.does.logits is None and not rounds), None)
    if unjudged is not None:
        raise UsageError(
            f"{unjudged.label} is for speed only, and --rounds 0 measures none: leave it out"
        )
    elsewhere = next((one for one in engines if device not in one.does.devices), None)
    if elsewhere is not None:
        raise UsageError(
            f"{elsewhere.label} is measured on the CPU only: leave it out, or take --device cpu"
        )
    if device == "cuda":
        need_cuda()
    source = prompts.source(manifest, text)
    n_ctx = manifest.model.n_ctx
    new = new_tokens or min(NEW, n_ctx // 2)
    room = n_ctx - new - 1
    lengths = _lengths(prompt_tokens, room=room)
    if window and window > n_ctx:
        raise UsageError(
            f"--window is {window}, more than the {n_ctx} tokens that the context holds: give fewer"
        )
    plan = speed.Plan(
        lengths,
        min(COLD, room),
        new,
        rounds,
        repeats,
        batch,
        threads or cpu_cores(),
        list(manifest.tokens.eos),
        device,
    )
    compared = None
    if quality:
        scored = tokens or (SCORED if text else None)
        compared = qualities.compared(
            manifest, engines, source, reference, window=window or WINDOW, tokens=scored
        )

    if rounds and not prompt_tokens and lengths != list(LENGTHS):
        usual, fitting = _listed(LENGTHS), _listed(lengths)
        note(
            f"the context holds {n_ctx} tokens: prompts of {fitting}, and {new} new ones, not of {usual}"
        )
    facts = machine(program="gptx", device=device)
    kernels = {one.label: words for one in engines if (words := _kernels(one))}
    said = [*lines(facts), *(f"{label}: {words}" for label, words in kernels.items())]
    again = (
        ", again and again: it is shorter than a prompt" if len(source.ids) < max(lengths) else ""
    )
    said += [f"prompts are cut from {source.name}{again}"] if rounds else []
    write_out("\n".join(said) + "\n")
    found: dict[str, Any] = {
        "benchmark": "bench",
        **facts,
        "kernels": kernels,
        "settings": asdict(plan),
    }
    results: list[Result] = []
    with _ready(engines, plan.threads) as ready:
        timed = [one for one in ready if one.does.load is not None]
        if rounds:
            with _told("measuring", rounds * (1 + len(timed))) as told:
                results, bandwidth = speed.measure(timed, source.ids, plan, told)
            report.print_speed(results, bandwidth, plan)
            found["bandwidth"] = asdict(bandwidth)
            found["engines"] = [one.to_dict(results[0]) for one in results]
        if compared:
            with _told("scoring", len(ready) + 1) as told:
                judged = qualities.measure(ready, compared, plan.threads, told, device=device)
            report.print_quality(judged)
            found["quality"] = judged.to_dict()
    if results:
        report.print_verdicts(results)
    if png_file:
        from gptx.bench.picture import picture

        title = f"{facts['gpu'] or facts['cpu']}, {plan.threads} threads, {facts['date'][:10]}"
        write_file(png_file, picture(results, title))
    if json_file:
        write_file(json_file, (json.dumps(found, indent=1) + "\n").encode())


def _check_combination(
    *,
    rounds: int,
    quality: bool,
    reference: Path | None,
    scored: int | None,
    picture: Path | None,
    json: Path | None,
) -> None:
    if not rounds and not quality:
        raise UsageError("--rounds 0 measures no speed: give --quality, or at least one round")
    if not rounds:
        refuse_without("rounds of speed", "prompt_tokens", "new_tokens", "batch", "repeats")
    if not json and not picture:
        refuse_without("--json or --picture", "force")
    if reference and not quality:
        raise UsageError("--reference is what --quality compares with: give both")
    if scored and not quality:
        raise UsageError(
            "--tokens and --window say how --quality scores a text: give --quality too"
        )
    if picture:
        if picture.suffix.lower() != ".png":
            raise UsageError(
                f"--picture {picture}: it is a PNG file, so let its name end with .png"
            )
        if json and json.resolve() == picture.resolve():
            raise UsageError(f"--json and --picture are both {picture}: name two files")
        if not rounds:
            raise UsageError("--picture draws speed, and --rounds 0 measures none")
        from gptx.bench.picture import need_matplotlib

        need_matplotlib()


def _lengths(given: tuple[int, ...], *, room: int) -> list[int]:
    """Prompt lengths in order; without any, the usual ones, as far as the context has room for them."""
    beyond = next((n for n in given if n > room), None)
    if beyond is not None:
        raise UsageError(
            f"a prompt of {beyond} tokens and what follows do not fit into the context: at most {room}"
        )
    if room < 1:
        raise UsageError("--new-tokens leaves no room for a prompt in the context: give fewer")
    return sorted(set(given) or {min(n, room) for n in LENGTHS})


def _listed(lengths: Iterable[int]) -> str:
    return " and ".join(map(str, lengths))


def _kernels(one: Contender) -> str:
    """How an artifact's weights are stored, and for which processor that was chosen; "" of other formats."""
    from gptx.artifact.folders import kind_of
    from gptx.artifact.manifest import read_manifest

    if kind_of(one.path) != "artifact":
        return ""
    manifest = read_manifest(one.path)
    quantization = manifest.raw.get("quantization") or {}
    scheme, cpu = (
        quantization.get("scheme", manifest.precision),
        (quantization.get("cpu") or {}).get("name"),
    )
    return f"weights in {scheme}" + (f", chosen for {cpu}" if cpu else "")


@contextmanager
def _ready(engines: list[Contender], threads: int) -> Iterator[list[Contender]]:
    """The engines with the paths that are loaded: CTranslate2 converts first, which is not part of what is measured."""
    from gptx.bench import children
    from gptx.progress import stage

    with tempfile.TemporaryDirectory(prefix="gptx-bench-") as folder:
        ready = []
        for number, one in enumerate(engines):
            if one.does.prepare:
                with stage(f"preparing {one.label}"):
                    answer = children.ask(
                        one, threads=threads, prepare=str(Path(folder) / str(number))
                    )
                one = replace(one, path=Path(answer["path"]))
            ready.append(one)
        yield ready


@contextmanager
def _told(text: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal that names what is being measured; when piped a line each."""
    from gptx.progress import has_bars, note, stage

    with stage(text, total=total) as advance:
        done = 0

        def told(what: str) -> None:
            nonlocal done
            if has_bars():
                advance(min(done, 1), what)  # what was named before is done now
            else:
                note(what)
            done += 1

        yield told
