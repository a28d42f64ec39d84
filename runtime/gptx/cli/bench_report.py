"""The results as tables on standard output, with what the columns mean and a sentence for each peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gptx.bench.bandwidth import last_level_cache
from gptx.bench.figures import Spread, Spreads, Which
from gptx.bench.quality import Quality
from gptx.bench.speed import Bandwidth, Plan, Result
from gptx.cli.output import write_out
from gptx.cli.table import print_table

Cells = Callable[[Result, Result], list[str]]  # an engine's, beside the first's

LEGEND = """\
Medians (lowest-highest, where they are more than 1% apart); x1st: times the first engine's.
Prefill: time to the first token. Decode: the tokens after it, at batch 1. Same tokens: new ones equal to the first
engine's before the first that differs. Limit: what the memory's speed allows if a token reads every weight once (the
cache is read besides).
Loading: files in the page cache, the library imported before; first token: of a prompt of {cold} tokens, from the load on.
Memory: what is added to the process after importing the library, and times the weights: PSS after loading
(mapped weights that were not read yet are missing there) and after all prompts; peaks: the most RSS in either phase.
Device's memory: what is taken of it, less what was before loading.
"""

MEMORY = {
    "memory, MB": {
        "loaded": "loaded",
        "used": "after use",
        "peak_loading": "peak loading",
        "peak_running": "peak running",
    },
    "device's memory, MB": {"device_loaded": "loaded", "device_used": "after use"},
}


def print_speed(results: Sequence[Result], bandwidth: Bandwidth, plan: Plan) -> None:
    write_out(
        f"threads {plan.threads}, new tokens {plan.new_tokens}, rounds {plan.rounds}, runs in each {plan.repeats}\n"
        f"memory is read at {bandwidth.bytes_per_s / 1e9:.1f} GB/s ({bandwidth.kernel})\n"
    )
    for result in results:
        write_out(f"{result.contender.label}: {_about(result)}\n")
    write_out("\n")
    _section("limit", ["weights MB", "read a token MB", "tok/s at most"], results, _limit)
    for length in plan.prompt_tokens:
        heads = ["prefill ms", "x1st", "decode tok/s", "x1st", "% of limit", "same tokens"]
        _section(
            f"prompt of {length} tokens",
            heads,
            results,
            lambda one, first, n=length: _prompt(one, first, n),
        )
    for where, columns in MEMORY.items():
        if columns.keys() <= results[0].memory.keys():
            _section(
                where,
                list(columns.values()),
                results,
                lambda one, first, columns=columns: _memory(one, columns),
            )
    _section("loading", ["import s", "load s", "x1st", "first token s", "x1st"], results, _loading)
    together = [one for one in results if one.batch]
    if together:
        heads = ["tok/s in all", "alone", "gain", "% of limit", "rows as alone"]
        _section(
            f"batch of {plan.batch}", heads, together, lambda one, first: _batch(one, plan.batch)
        )
    write_out(LEGEND.format(cold=plan.cold))
    if any(one.weights.read < last_level_cache() for one in results):
        write_out(
            "Weights that fit into the processor's cache can be read faster than memory: the limit is none.\n"
        )


def print_verdicts(results: Sequence[Result]) -> None:
    """A sentence for each peer: gptx:a after 128, 512 tokens decodes 1.31, 1.20 times as fast as llamacpp:b ..."""
    first = results[0]
    after = ", ".join(map(str, first.prompts))
    for peer in results[1:]:
        pairs = [(first.prompts[length], peer.prompts[length]) for length in first.prompts]
        decode, prefill = _all_times(pairs, "median", "median")
        best_decode, best_prefill = _all_times(pairs, "highest", "lowest")
        kind = next((name for name in ("device_used", "used") if name in first.memory), None)
        memory = f", in {_times(first.memory, peer.memory, kind)} times the memory" if kind else ""
        write_out(
            f"{first.contender.label} after {after} tokens decodes {decode} times as fast as {peer.contender.label} and "
            f"prefills {prefill} times as fast{memory}; each in its best run: {best_decode} and {best_prefill}\n"
        )


def _all_times(
    pairs: Sequence[tuple[Spreads, Spreads]], decode: Which, prefill: Which
) -> tuple[str, str]:
    """How many times as fast the first of each pair is, in decode and in prefill, by these of either's runs."""
    return (
        ", ".join(_times(ours, theirs, "decode_tokens_per_s", decode) for ours, theirs in pairs),
        ", ".join(_times(theirs, ours, "prefill_s", prefill) for ours, theirs in pairs),
    )


def _times(values: Spreads, others: Spreads, name: str, of: Which = "median") -> str:
    ratio = values[name].ratio(others[name], of)
    return "?" if ratio is None else f"{ratio:.2f}"


def print_quality(quality: Quality) -> None:
    facts = quality.protocol.to_dict()
    write_out(
        f"\nquality on {facts['text']} (sha256 {facts['sha256'][:12]}...): its first {facts['tokens']} tokens in windows "
        f"of {facts['window']}, stride {facts['stride']}, the first token of each window not scored: {facts['scored']} "
        f"scored\nagainst {quality.reference}; KL in nats; +- is one standard error, the change's of paired tokens\n\n"
    )
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
    heads = [
        "",
        "perplexity",
        "change %",
        "mean KL",
        "99.9% KL",
        "same top-1 %",
        "largest logit diff",
    ]
    _print(heads, rows)


def _about(result: Result) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return "; ".join(filter(None, (versions, result.notes)))


def _section(title: str, heads: list[str], results: Sequence[Result], cells: Cells) -> None:
    _print([title, *heads], [[one.contender.label, *cells(one, results[0])] for one in results])
    write_out("\n")


def _print(heads: list[str], rows: list[list[str]]) -> None:
    """A table with all but its first column to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    lines = [
        [cell if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        for row in (heads, *rows)
    ]
    print_table(lines[1:], header=lines[0])


def _limit(one: Result, first: Result) -> list[str]:
    return [number(one.weights.stored / 1e6), number(one.weights.read / 1e6), number(one.limit)]


def _prompt(one: Result, first: Result, length: int) -> list[str]:
    values, theirs = one.prompts[length], first.prompts[length]
    return [
        *_with_ratio(values, theirs, "prefill_s", 1e3),
        *_with_ratio(values, theirs, "decode_tokens_per_s"),
        f"{100 * values['share_of_limit'].median:.0f}",
        spread(values["same_tokens"]),
    ]


def _memory(one: Result, columns: Iterable[str]) -> list[str]:
    values = [one.memory[name] for name in columns]
    return [f"{spread(value, 1e-6)} x{value.median / one.weights.stored:.2f}" for value in values]


def _loading(one: Result, first: Result) -> list[str]:
    return [
        spread(one.loading["import_s"]),
        *_with_ratio(one.loading, first.loading, "load_s"),
        *_with_ratio(one.loading, first.loading, "first_token_from_load_s"),
    ]


def _batch(one: Result, size: int) -> list[str]:
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
    low, middle, high = (number(x * scale) for x in (value.lowest, value.median, value.highest))
    apart = value.highest - value.lowest > 0.01 * value.median and low != high
    return f"{middle} ({low}-{high})" if apart else middle


def number(value: float) -> str:
    """With three digits that count: 1928, 608, 98.4, 0.0312."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
