"""Showing how far reading the weights has come: a bar on a terminal, nothing where output is piped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from gptx_models.weights import TensorSource


@contextmanager
def shown(source: TensorSource) -> Iterator[TensorSource]:
    """`source`, with a bar on standard error while its tensors are read."""
    if not sys.stderr.isatty():
        yield source
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("reading weights"), BarColumn(), MofNCompleteColumn(), TextColumn("tensors"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(source.shapes))

        def read(name: str) -> Tensor:
            value = source.read(name)
            bar.advance(task)
            return value

        yield replace(source, read=read)
