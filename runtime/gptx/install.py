"""What this distribution is called, and the pip command that adds one of its extras. The one place that knows."""

from __future__ import annotations

from pathlib import Path

NAME = "gptx-edge"  # "gptx" on PyPI is somebody else's


def version() -> str:
    import importlib.metadata  # see gptx.ort.library

    try:
        return importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:  # run from a clone that was never installed
        return "0+unknown"


def pip_command(extra: str) -> str:
    """`pip install -e '.[export]'` in a clone, the distribution's own name elsewhere."""
    clone = (Path(__file__).parents[2] / "pyproject.toml").exists()
    return f"pip install -e '.[{extra}]'" if clone else f"pip install '{NAME}[{extra}]'"
