"""A benchmark's page, made from the JSON file that `gptx bench --json` wrote.

A file in, Markdown out. No figure, version or machine is written by hand.
"""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from generator.markdown import escaped, table

Run = Mapping[str, Any]  # what the file holds
Spread = Mapping[str, Any]  # median, lowest, highest, samples and ratio to the first engine
MEMORY = {
    "loaded": "loaded",
    "used": "after use",
    "peak_loading": "peak while loading",
    "peak_running": "peak while running",
    "device_loaded": "device: loaded",
    "device_used": "device: after use",
}
BUSY = 0.5  # load average per core from which the page warns


def page(file: Path) -> str:
    run = json.loads(file.read_text("utf-8"))
    parts = [f"# {title(run)}", _source(file), _machine(run), _speed(run), _quality(run), _LEGEND]
    return "\n\n".join(filter(None, parts)) + "\n"


def listing(files: Iterable[Path]) -> str:
    """A table of all runs, each with a link to its page."""
    rows = []
    for file in files:
        run = json.loads(file.read_text("utf-8"))
        names = [escaped(one["engine"]) for one in run.get("engines", [])]
        link = f"[{run['date'][:10]}, {escaped(_measured(run))}]({file.stem}.md)"
        rows.append((link, escaped(run["gpu"] or run["cpu"]), ", ".join(names[1:]) or "alone"))
    return table(["run", "processor", "beside"], rows)


def title(run: Run) -> str:
    return f"{run['date'][:10]}: {escaped(_measured(run))} on {escaped(run['gpu'] or run['cpu'])}"


def _measured(run: Run) -> str:
    if run.get("engines"):
        return run["engines"][0]["engine"].partition(":")[2]
    return run["quality"]["models"][0]["engine"].partition(":")[2]


def _source(file: Path) -> str:
    return (
        f"This page is made from `docs/benchmarks/{file.name}` by "
        "`docs/generator/benchmark_page.py`. None of its figures was typed by hand."
    )


def _machine(run: Run) -> str:
    settings = run["settings"]
    rows = [
        ("date", run["date"]),
        ("processor", f"{run['cpu']}, {run['cores']} cores"),
        ("its features", " ".join(run["cpu_features"])),
        ("GPU", run["gpu"]),
        ("system", run["system"]),
        ("Python", run["python"]),
        *((name, found) for name, found in _versions(run).items()),
        ("load before", f"load average {run['load_average']} on {run['cores']} cores"),
        ("threads", settings["threads"]),
        ("new tokens", settings["new_tokens"]),
        ("rounds", f"{settings['rounds']}, with {settings['repeats']} runs of each length"),
        *((name, words) for name, words in run.get("kernels", {}).items()),
    ]
    facts = table(
        ["setting", "value"], [(one, escaped(str(what))) for one, what in rows if what is not None]
    )
    return f"## How it was measured\n\n```sh\n{_command(run)}\n```\n\n{_busy(run)}{facts}"


def _versions(run: Run) -> dict[str, str]:
    found = {name: version for name, version in run["versions"].items() if version}
    for one in run.get("engines", []):
        found |= one["versions"]
    found.pop("gptx-edge", None)  # gptx by the name of its distribution
    return found


def _command(run: Run) -> str:
    """The command, over several lines that a shell reads as one."""
    lines = textwrap.wrap(run["command"], 78, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines)


def _busy(run: Run) -> str:
    load = run["load_average"]
    if not load or load <= BUSY * run["cores"]:
        return ""
    return (
        "!!! warning\n    Other programs used the machine: the load average was "
        f"{load} on {run['cores']} cores before the run.\n    The times are longer than on a quiet "
        "machine, and they vary more. Compare engines, not absolute times.\n\n"
    )


def _speed(run: Run) -> str:
    engines = run.get("engines", [])
    if not engines:
        return ""
    parts = [
        f"Memory is read at {run['bandwidth']['bytes_per_s'] / 1e9:.1f} GB/s.",
        _limits(engines),
    ]
    for length in engines[0]["prompts"]:
        parts += _prompt(engines, length)
    parts += [_batch(run, engines), _memory(engines), _loading(engines)]
    return "## Speed\n\n" + "\n\n".join(filter(None, parts))


def _limits(engines: Sequence[Run]) -> str:
    heads = ["engine", "weights, MB", "read for a token, MB", "tokens/s at most"]
    rows = [
        (
            _name(one),
            number(one["weights_bytes"] / 1e6),
            number(one["read_bytes_per_token"] / 1e6),
            number(one["limit_tokens_per_s"]),
        )
        for one in engines
    ]
    return table(heads, rows)


def _prompt(engines: Sequence[Run], length: str) -> list[str]:
    def of(one: Run) -> Mapping[str, Spread]:
        return one["prompts"][length]

    heads = ["engine", "prefill, ms", "times the first", "decode, tokens/s", "times the first"]
    rows = [
        (
            _name(one),
            spread(of(one)["prefill_s"], 1e3),
            _ratio(of(one)["prefill_s"]),
            spread(of(one)["decode_tokens_per_s"]),
            _ratio(of(one)["decode_tokens_per_s"]),
        )
        for one in engines
    ]
    same = table(
        ["engine", "share of the memory's limit", "same tokens as the first engine"],
        [
            (
                _name(one),
                f"{100 * of(one)['share_of_limit']['median']:.0f}%",
                spread(of(one)["same_tokens"]),
            )
            for one in engines
        ],
    )
    return [
        f"### After {length} tokens",
        table([*heads], rows),
        bars("Prefill, ms (shorter is better)", engines, lambda one: of(one)["prefill_s"], 1e3),
        bars("Decode, tokens/s", engines, lambda one: of(one)["decode_tokens_per_s"], 1),
        same,
    ]


def _batch(run: Run, engines: Sequence[Run]) -> str:
    together = [one for one in engines if one["batch"]]
    if not together:
        return ""
    rows_of = run["settings"]["batch"]
    heads = [
        "engine",
        "tokens/s in all",
        "one row alone",
        "gain",
        "rows with the text they have alone",
    ]
    rows = [
        (
            _name(one),
            spread(one["batch"]["tokens_per_s"]),
            spread(one["batch"]["alone_tokens_per_s"]),
            f"{one['batch']['gain']['median']:.2f}",
            f"{spread(one['batch']['same_rows'])} of {rows_of}",
        )
        for one in together
    ]
    drawn = bars("Tokens/s in all", together, lambda one: one["batch"]["tokens_per_s"], 1)
    return f"### A batch of {rows_of} rows\n\n{table(heads, rows)}\n\n{drawn}"


def _memory(engines: Sequence[Run]) -> str:
    names = [name for name in MEMORY if name in engines[0]["memory"]]
    if not names:
        return ""
    rows = [(_name(one), *(spread(one["memory"][name], 1e-6) for name in names)) for one in engines]
    drawn = bars("Memory after use, MB", engines, lambda one: one["memory"][names[1]], 1e-6)
    heads = ["engine, MB", *(MEMORY[name] for name in names)]
    return f"### Memory\n\n{table(heads, rows)}\n\n{drawn}"


def _loading(engines: Sequence[Run]) -> str:
    names = {
        "import_s": "import of the library",
        "load_s": "loading",
        "first_token_from_load_s": "first token, from loading on",
    }
    rows = [(_name(one), *(spread(one["loading"][name]) for name in names)) for one in engines]
    return f"### Loading, in seconds\n\n{table(['engine', *names.values()], rows)}"


def _quality(run: Run) -> str:
    judged = run.get("quality")
    if not judged:
        return ""
    facts = judged.get("protocol", judged)
    said = ", ".join(
        f"{name} {facts[name]}" for name in ("text", "tokens", "window") if name in facts
    )
    heads = ["engine", "perplexity", "change", "mean KL, nats", "same top-1"]
    rows = [
        (
            escaped(one["engine"]),
            f"{one['perplexity']:.4f} ± {one['perplexity_error']:.3f}",
            f"{100 * one['change']:+.3f}% ± {100 * one['change_error']:.3f}",
            f"{one['kl_mean']:.3g}",
            f"{100 * one['same_top1']:.2f}%",
        )
        for one in judged["models"]
    ]
    against = escaped(str(judged["reference"]))
    return f"## Quality\n\nCompared with {against}: {escaped(said)}.\n\n{table(heads, rows)}"


_LEGEND = """## What the columns mean

- **Prefill**: the time from the call to the first token. **Decode**: the tokens after it, one row.
- **Median (lowest-highest)**, where the runs are more than 1% apart. **Times the first**: the
  median divided by that of the first engine.
- **Share of the memory's limit**: if each token reads all weights once, memory allows so many
  tokens a second. Small models fit into the processor's caches and can exceed the limit.
- **Same tokens**: new tokens equal to the first engine's, before the first one that differs.
- **Memory**: what loading or running adds to the process after its library was imported. `loaded`
  and `after use` are PSS, the peaks are RSS.
"""


def bars(title: str, engines: Sequence[Run], of: Callable[[Run], Spread], scale: float) -> str:
    """A bar for each engine's median, and a line from its lowest to its highest run, as HTML.

    style.css draws them.
    """
    found = [(one["engine"], of(one)) for one in engines]
    longest = max(value["highest"] for _, value in found) or 1
    rows = []
    for name, value in found:
        low, middle, high = (100 * value[key] / longest for key in ("lowest", "median", "highest"))
        label = f"<span>{html.escape(name)}</span><b>{number(value['median'] * scale)}</b>"
        line = f'<s style="left:{low:.1f}%;width:{high - low:.1f}%"></s>'
        rows.append(f'<li>{label}<i><u style="width:{middle:.1f}%"></u>{line}</i></li>')
    return f'<figure class="bars"><figcaption>{title}</figcaption><ul>{"".join(rows)}</ul></figure>'


def _name(one: Run) -> str:
    return escaped(one["engine"])


def _ratio(value: Spread) -> str:
    return "?" if value.get("ratio") is None else f"{value['ratio']:.2f}"


def spread(value: Spread, scale: float = 1) -> str:
    low, middle, high = (number(value[key] * scale) for key in ("lowest", "median", "highest"))
    apart = value["highest"] - value["lowest"] > 0.01 * value["median"] and low != high
    return f"{middle} ({low}-{high})" if apart else middle


def number(value: float) -> str:
    """With three digits that count: 1,928, 608, 98.4, 0.0312."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
