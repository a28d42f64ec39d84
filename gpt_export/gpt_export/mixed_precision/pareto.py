"""Show the measured mixes: a table of plain text, JSON for gptx.json, and a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt_export.quantization.recipes import Quantization
from gptx.errors import UsageError
from gptx.parity.metrics import Figures
from gptx.system.cpu import cpu_name

HEADER = ("", "mix", "MB", "ms a token", "predicted KL", "KL", "perplexity", "change")


@dataclass(eq=False)  # compared by identity
class Point:
    """A measured mix."""

    name: str
    made: Quantization
    size: int  # bytes of the files in onnx/; an estimate until the mix is written
    ms: float  # for the products of one token
    figures: Figures  # measured in PyTorch on a part of the proof text
    predicted_kl: float | None = None  # the sum of the layers' single KLs

    @property
    def change(self) -> float:
        """Relative rise of the perplexity: 0.005 is half a percent."""
        return self.figures.perplexity / self.figures.perplexity_reference - 1


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}" if size >= 1e7 else f"{size / 1e6:.3f}"


def by_size(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: (point.size, point.figures.kl_mean))


def is_best(point: Point, points: Sequence[Point]) -> bool:
    """True on the Pareto front: no other point has at most this size and at most this KL."""
    return not any(
        other.size <= point.size
        and other.figures.kl_mean <= point.figures.kl_mean
        and other is not point
        for other in points
    )


def table(points: Sequence[Point], chosen: Point, operators: str) -> str:
    """The mixes as plain text. operators: those that were timed, in words."""
    rows: list[tuple[str, ...]] = [HEADER]
    for point in by_size(points):
        rows.append(
            (
                ">" if point is chosen else "" if is_best(point, points) else "-",
                point.name,
                megabytes(point.size),
                f"{point.ms:.3g}",
                number(point.predicted_kl, ".2e"),
                number(point.figures.kl_mean, ".2e"),
                number(point.figures.perplexity, ".4f"),
                number(point.change, "+.2%"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    cells = [
        [(str.ljust if i < 2 else str.rjust)(row[i], widths[i]) for i in range(len(row))]
        for row in rows
    ]
    return "\n".join(
        ["  ".join(row).rstrip() for row in cells]
        + [*notes(chosen.figures.positions, operators), ""]
    )


def number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def notes(tokens: int, operators: str) -> list[str]:
    return [
        "> was chosen; - is no better than a smaller mix. MB: graph and weights, estimated to",
        "some kB (exact for the chosen mix). ms a token: the products of one token's layers and",
        f"head, timed here on {operators}, without attention.",
        "KL, perplexity: measured in PyTorch with rounded weights and activations,",
        f"on {tokens} tokens of the proof text.",
        "Predicted KL: that of all layers in 8 bits, plus that of each layer in 4 bits alone.",
        "A mix says how many layers have which form; 4/32: 4 bits, a scale and a zero point for 32",
        "weights.",
    ]


def to_json(points: Sequence[Point], chosen: Point, operators: str) -> dict[str, Any]:
    return {
        "measured": f"in PyTorch on {chosen.figures.positions} tokens of the proof text",
        "timed": f"the products of one token, {cpu_name()}",
        "operators": operators,
        "points": [
            {
                "mix": point.name,
                "bytes": point.size,
                "ms_per_token": round(point.ms, 4),
                "predicted_kl": point.predicted_kl,
                "kl_mean": point.figures.kl_mean,
                "perplexity": None if math.isnan(point.change) else point.figures.perplexity,
                "perplexity_change": None if math.isnan(point.change) else point.change,
                "chosen": point is chosen,
            }
            for point in by_size(points)
        ],
    }


def need_matplotlib() -> None:
    """Raise UsageError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            "--budget draws a picture with matplotlib, which is not installed:"
            " pip install matplotlib"
        ) from error


def picture(points: Sequence[Point], chosen: Point, title: str) -> bytes:
    """Draw KL over size and over time, with the chosen mix marked; returns a PNG file's bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    shown = by_size(points)
    kl = [max(point.figures.kl_mean, 1e-9) for point in shown]
    sides = (
        ("MB of graph and weights", [point.size / 1e6 for point in shown]),
        ("ms a token in products", [point.ms for point in shown]),
    )
    for axis, (what, values) in zip(axes, sides):
        axis.plot(values, kl, "o", color="#0072B2", markersize=5)
        at = shown.index(chosen)
        axis.plot(
            values[at], kl[at], "o", color="#D55E00", markersize=10, label=f"chosen: {chosen.name}"
        )
        for point, value, height in zip(shown, values, kl):
            axis.annotate(
                number(point.change, "+.2%"),
                (value, height),
                (5, 4),
                textcoords="offset points",
                fontsize=7,
            )
        axis.set(xlabel=what, yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean KL, nats (beside it: change of perplexity)")
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)
    return file.getvalue()
