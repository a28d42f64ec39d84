"""The name of this distribution, its version, and the pip commands that install its extras."""

from __future__ import annotations

from pathlib import Path

NAME = "gptx-edge"  # on PyPI, the name gptx belongs to another project


def version() -> str:
    """The installed version; "0+unknown" in a clone that was not installed."""
    # Imported here: it takes 15 ms and 3 MB, and loading a model does not need it.
    import importlib.metadata

    try:
        return importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def pip_command(extra: str) -> str:
    """The command that installs an extra such as "export".

    In a clone it is `pip install -e '.[export]'`, elsewhere `pip install 'gptx-edge[export]'`.
    """
    clone = (Path(__file__).parents[2] / "pyproject.toml").exists()
    return f"pip install -e '.[{extra}]'" if clone else f"pip install '{NAME}[{extra}]'"
