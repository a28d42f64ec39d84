"""What gptx verify found: checks that hold or not, figures beside the certified ones, and notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """A statement about the artifact that holds or does not."""

    name: str
    what: str  # if it holds, the statement; else a sentence on what is wrong
    ok: bool


@dataclass(frozen=True)
class Row:
    """One figure: `certified` by the machine that made the artifact, and measured `here`."""

    name: str
    what: str  # its meaning, in words
    certified: float | None  # None: the certificate does not state it
    here: float
    limit: float | None  # None: the figure is not judged
    ok: bool  # within the limit; without one, a finite number
    # True if `here` and `certified` differ by more than the rounding of another CPU explains
    differs: bool = False


@dataclass
class Report:
    """All results of one verification, in the order in which they are printed."""

    graph: str = ""  # the graph file that ran, relative to the artifact
    kernels: str = ""  # the native kernels that it ran with; "": ONNX Runtime's operators
    decode: str = ""  # the graph file that ran single rows, "" if the artifact has none
    checks: list[Check] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    logits_sha256: list[str] = field(default_factory=list)  # see Measured
    # figures of the certificate that need the original model, so that they cannot be proved here
    stated: dict[str, Any] = field(default_factory=dict)
    # sentences on what ran, what it was compared with, what is odd and what was not proved
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True if every check holds and every figure is within its limit."""
        return all(row.ok for row in self.rows) and all(check.ok for check in self.checks)


def failures(report: Report) -> list[str]:
    """A phrase for each figure outside its limit, and for each check that failed."""
    figures = [
        f"{row.name} is {row.here:.4g}, limit"
        f" {'a finite number' if row.limit is None else f'{row.limit:.4g}'}"
        for row in report.rows
        if not row.ok
    ]
    return figures + [f"{check.name}: {check.what}" for check in report.checks if not check.ok]
