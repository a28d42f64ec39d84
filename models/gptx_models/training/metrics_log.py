"""The metrics of a run: metrics.csv, loss.png, and TensorBoard if it is installed."""

from __future__ import annotations

import csv
import importlib.util
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

METRICS, PICTURE = "metrics.csv", "loss.png"


@dataclass(frozen=True)
class MetricsRow:
    """A row of metrics.csv. Losses are in nats per token. None (an empty cell): not measured."""

    step: int
    tokens: int  # trained on so far
    seconds: float  # training time so far
    learning_rate: float
    train_loss: float  # mean of the steps since the previous row
    grad_norm: float  # of the last step, before clipping
    val_loss: float | None = None
    bits_per_byte: float | None = None


class MetricsLog:
    """Appends rows to metrics.csv in a run's folder.

    done: the step from which the run resumes. Rows of later steps are removed first: a killed run
    reached those steps, but its state does not hold them.
    """

    def __init__(self, folder: Path, *, done: int) -> None:
        self.folder = folder
        self.rows = [row for row in read_metrics(folder) if row.step <= done]
        self._write_all()
        self._board = _tensorboard(folder, purge=done)

    def add(self, row: MetricsRow) -> None:
        self.rows.append(row)
        with open(self.folder / METRICS, "a", newline="") as file:
            csv.writer(file).writerow(_cells(row))
        if self._board:
            for name, value in asdict(row).items():
                if value is not None and name not in ("step", "tokens"):
                    self._board.add_scalar(name, value, row.step)

    def draw(self) -> None:
        """Draw loss.png: training and validation loss over the tokens seen."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        train = [(row.tokens / 1e6, row.train_loss) for row in self.rows]
        val = [(row.tokens / 1e6, row.val_loss) for row in self.rows if row.val_loss is not None]
        axes.plot(*zip(*train), color="#9aa7b8", linewidth=1, label="training")
        if val:
            style: dict[str, Any] = {"linewidth": 2, "marker": "o", "markersize": 3}
            axes.plot(*zip(*val), color="#c2410c", label="validation", **style)
        low = min(loss for _, loss in train + val)
        # Without the first steps, which are so high that they would flatten the rest.
        high = max(loss for _, loss in train[len(train) // 20 :])
        axes.set(xlabel="million tokens", ylabel="loss, nats per token", ylim=_limits(low, high))
        axes.grid(alpha=0.3)
        axes.legend()
        part = self.folder / f"{PICTURE}.part"
        figure.savefig(part, dpi=120, format="png")
        pyplot.close(figure)
        os.replace(part, self.folder / PICTURE)

    def _write_all(self) -> None:
        part = self.folder / f"{METRICS}.part"
        with open(part, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([f.name for f in fields(MetricsRow)])
            writer.writerows(_cells(row) for row in self.rows)
        os.replace(part, self.folder / METRICS)


def read_metrics(folder: Path) -> list[MetricsRow]:
    """The rows of a run's metrics.csv; a last line that was cut off is left out."""
    file = folder / METRICS
    if not file.exists():
        return []
    with open(file, newline="") as lines:
        # csv.DictReader puts None where a line has too few cells or too many
        rows = [r for r in csv.DictReader(lines) if None not in r.values() and None not in r]
    return [
        MetricsRow(
            *(int(row[name]) for name in ("step", "tokens")),
            *(float(row[name]) for name in ("seconds", "learning_rate", "train_loss", "grad_norm")),
            *(float(row[name]) if row[name] else None for name in ("val_loss", "bits_per_byte")),
        )
        for row in rows
    ]


def _limits(low: float, high: float) -> tuple[float, float]:
    """The limits of the axis of losses. One row gives an empty range, of which matplotlib warns."""
    return (low - 0.05 * (high - low), high) if high > low else (low - 0.5, low + 0.5)


def _cells(row: MetricsRow) -> list[Any]:
    values = asdict(row).values()
    return [
        "" if value is None else f"{value:.7g}" if isinstance(value, float) else value
        for value in values
    ]


def _tensorboard(folder: Path, *, purge: int) -> Any:
    """A writer for TensorBoard that hides earlier events from step `purge` on.

    None if TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard", purge_step=purge)
