"""Print the results of gptx bench: tables, a legend of their columns, and comparisons in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from gptx.bench.bandwidth import last_level_cache
from gptx.bench.figures import Spread, Spreads, Which
from gptx.bench.machine import lines
from gptx.bench.quality import Quality
from gptx.bench.speed import Bandwidth, EngineSpeed, SpeedPlan
from gptx.cli.next_step import use
from gptx.cli.output import note, printable, write_next, write_out, write_prose
from gptx.cli.table import print_table

if TYPE_CHECKING:
    from gptx.cli.bench_plan import Work

# (an engine, the first engine) -> the cells of the engine's row
Cells = Callable[[EngineSpeed, EngineSpeed], list[str]]

MEMORY = {
    "memory, MB": {
        "loaded": "loaded",
        "used": "after use",
        "peak_loading": "peak loading",
        "peak_running": "peak running",
    },
    "GPU memory, MB": {"device_loaded": "loaded", "device_used": "after use"},
}
LEGEND = {
    "": "All figures are medians, with (lowest-highest) where these are more than 1% apart.",
    "x1st": "x1st: ratio to the figure of the first engine. Same tokens: the number of new tokens"
    " that equal the first engine's, before the first that differs.",
    "prefill": "Prefill: time to the first new token. Decode: speed of the tokens after it, at"
    " batch 1. Limit: the decoding speed if a token did nothing but read all weights once from"
    " memory.",
    "cache": "These weights fit into the processor's cache, which is faster than memory: the limit"
    " does not hold for them.",
    "loading": "Loading: files are in the page cache, and the library is already imported. First"
    " token: time from the start of loading to the first token after a prompt of {cold} tokens.",
    "memory, MB": "Memory: what loading and running add to the process after the import; x: ratio"
    " to the size of the weights. Figures are PSS, which leaves out mapped weights that were not"
    " read yet; peaks are RSS.",
    "GPU memory, MB": "GPU memory: the memory in use, less that in use before loading.",
}


def print_conditions(work: Work) -> None:
    """Print the command, the machine, how weights are stored, and the source of the prompts."""
    for words in work.notes:
        note(words)
    command, *others = lines(work.machine)
    write_out(f"{printable(command)}\n")  # not wrapped, so that it can be pasted
    for line in others:
        write_prose(line)
    for label, words in work.kernels.items():
        write_prose(f"{label}: {words}")
    if work.speed.rounds:
        longest = max(work.speed.prompt_tokens)
        short = len(work.source.ids) < longest
        again = ", repeated because it is shorter than a prompt" if short else ""
        write_prose(f"prompts are cut from {work.source.name}{again}")


def print_speed(results: Sequence[EngineSpeed], bandwidth: Bandwidth, plan: SpeedPlan) -> None:
    """Print a table for each measurement, then the legend of those tables."""
    write_prose(
        f"threads {plan.threads}, new tokens {plan.new_tokens}, rounds {plan.rounds},"
        f" runs in each {plan.repeats}"
    )
    write_prose(f"memory is read at {bandwidth.bytes_per_s / 1e9:.1f} GB/s ({bandwidth.kernel})")
    for result in results:
        write_prose(f"{result.contender.label}: {_versions(result)}")
    write_out("\n")
    several = len(results) > 1
    legend = ["", "x1st", "prefill"] if several else ["", "prefill"]
    on_cpu = plan.device == "cpu"
    if on_cpu and any(one.weights.read < last_level_cache() for one in results):
        legend.append("cache")

    _section("limit", ["weights MB", "read a token MB", "tok/s at most"], results, _limit)
    for length in plan.prompt_tokens:
        heads = ["prefill ms", "x1st", "decode tok/s", "x1st", "% of limit", "same tokens"]
        _section(
            f"prompt of {length} tokens",
            heads,
            results,
            lambda one, first, length=length: _prompt(one, first, length),
        )
    for title, columns in MEMORY.items():
        if columns.keys() <= results[0].memory.keys():
            legend.append(title)
            _section(
                title,
                list(columns.values()),
                results,
                lambda one, first, columns=columns: _memory(one, columns),
            )
    legend.append("loading")
    _section("loading", ["import s", "load s", "x1st", "first token s", "x1st"], results, _loading)
    if batched := [one for one in results if one.batch]:
        heads = ["tok/s in all", "alone", "gain", "% of limit", "rows as alone"]
        _section(
            f"batch of {plan.batch}", heads, batched, lambda one, first: _batch(one, plan.batch)
        )
    for name in legend:
        write_prose(LEGEND[name].format(cold=plan.cold))


def print_verdicts(results: Sequence[EngineSpeed]) -> None:
    """Print a sentence for each peer: "gptx:a ... decodes 1.31 times as fast as llamacpp:b ..."."""
    for peer in results[1:]:
        first = results[0]
        after = ", ".join(map(str, first.prompts))
        pairs = [(first.prompts[length], peer.prompts[length]) for length in first.prompts]
        decode, prefill = _times_as_fast(pairs, "median", "median")
        best_decode, best_prefill = _times_as_fast(pairs, "highest", "lowest")
        kind = next((name for name in ("device_used", "used") if name in first.memory), None)
        memory = f", in {_times(first.memory, peer.memory, kind)} times the memory" if kind else ""
        write_prose(
            f"{first.contender.label} after {after} tokens decodes {decode} times as fast as"
            f" {peer.contender.label} and prefills {prefill} times as fast{memory}; each in its"
            f" best run: {best_decode} and {best_prefill}"
        )


def print_next(work: Work) -> None:
    """Print the next step: compare with genai, else write the JSON, else use the artifact."""
    request, engines = work.request, work.engines
    command = work.machine["command"]
    if len(engines) == 1 and (engines[0].path / "genai_config.json").exists():
        write_next(f"{command} --against genai")
    elif not request.json_file:
        write_next(f"{command} --json bench.json")
    else:
        write_next(use(request.artifact, device=request.device))


def print_quality(quality: Quality) -> None:
    """Print a row for each engine: perplexity, and the distance from the reference."""
    facts = quality.protocol.to_dict()
    write_out("\n")
    write_prose(
        f"quality on {facts['text']} (sha256 {facts['sha256'][:12]}...): its first"
        f" {facts['tokens']} tokens in windows of {facts['window']}, stride {facts['stride']}, the"
        f" first token of each window not scored: {facts['scored']} scored"
    )
    write_prose(
        f"against {quality.reference}; KL in nats; +- is one standard error; that of the change is"
        " computed from paired tokens"
    )
    write_out("\n")
    heads = ["", "perplexity", "change %", "mean KL", "99.9% KL", "same top-1 %"]
    rows = [
        [
            one["engine"],
            f"{one['perplexity']:.4f} +- {one['perplexity_error']:.3f}",
            f"{100 * one['change']:+.3f} +- {100 * one['change_error']:.3f}",
            f"{one['kl_mean']:.3g}",
            f"{one['kl_p999']:.3g}",
            f"{100 * one['same_top1']:.2f}",
            f"{one['max_abs']:.3g}",
        ]
        for one in quality.models
    ]
    print_table(rows, header=[*heads, "largest logit diff"], right=True)


def _times_as_fast(
    pairs: Sequence[tuple[Spreads, Spreads]], decode: Which, prefill: Which
) -> tuple[str, str]:
    """How many times as fast the first of each pair is, in decode and in prefill.

    decode, prefill: which of the runs are compared.
    """
    return (
        ", ".join(_times(ours, theirs, "decode_tokens_per_s", decode) for ours, theirs in pairs),
        ", ".join(_times(theirs, ours, "prefill_s", prefill) for ours, theirs in pairs),
    )


def _times(values: Spreads, others: Spreads, name: str, of: Which = "median") -> str:
    ratio = values[name].ratio(others[name], of)
    return "?" if ratio is None else f"{ratio:.2f}"


def _versions(result: EngineSpeed) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return "; ".join(filter(None, (versions, result.notes)))


def _section(title: str, heads: list[str], results: Sequence[EngineSpeed], cells: Cells) -> None:
    """Print a table with a row for each engine; for a single engine, without comparisons."""
    rows = [[one.contender.label, *cells(one, results[0])] for one in results]
    kept = [
        column
        for column, head in enumerate([title, *heads])
        if len(results) > 1 or head not in ("x1st", "same tokens")
    ]
    header, *rows = [[row[column] for column in kept] for row in ([title, *heads], *rows)]
    print_table(rows, header=header, right=True)
    write_out("\n")


def _limit(one: EngineSpeed, first: EngineSpeed) -> list[str]:
    return [number(one.weights.stored / 1e6), number(one.weights.read / 1e6), number(one.limit)]


def _prompt(one: EngineSpeed, first: EngineSpeed, length: int) -> list[str]:
    values, theirs = one.prompts[length], first.prompts[length]
    return [
        *_with_ratio(values, theirs, "prefill_s", 1e3),
        *_with_ratio(values, theirs, "decode_tokens_per_s"),
        f"{100 * values['share_of_limit'].median:.0f}",
        spread(values["same_tokens"]),
    ]


def _memory(one: EngineSpeed, columns: Iterable[str]) -> list[str]:
    values = [one.memory[name] for name in columns]
    return [f"{spread(value, 1e-6)} x{value.median / one.weights.stored:.2f}" for value in values]


def _loading(one: EngineSpeed, first: EngineSpeed) -> list[str]:
    return [
        spread(one.loading["import_s"]),
        *_with_ratio(one.loading, first.loading, "load_s"),
        *_with_ratio(one.loading, first.loading, "first_token_from_load_s"),
    ]


def _batch(one: EngineSpeed, size: int) -> list[str]:
    return [
        spread(one.batch["tokens_per_s"]),
        spread(one.batch["alone_tokens_per_s"]),
        f"{one.batch['gain'].median:.2f}",
        f"{100 * one.batch['share_of_limit'].median:.0f}",
        f"{spread(one.batch['same_rows'])} of {size}",
    ]


def _with_ratio(values: Spreads, first: Spreads, name: str, scale: float = 1) -> tuple[str, str]:
    return spread(values[name], scale), _times(values, first, name)


def spread(value: Spread, scale: float = 1) -> str:
    """The median, with (lowest-highest) if they are more than 1% of the median apart."""
    low, middle, high = (number(x * scale) for x in (value.lowest, value.median, value.highest))
    apart = value.highest - value.lowest > 0.01 * value.median and low != high
    return f"{middle} ({low}-{high})" if apart else middle


def number(value: float) -> str:
    """A figure with at least three significant digits: 1928, 608, 98.4, 0.0312."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
