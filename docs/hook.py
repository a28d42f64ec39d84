"""A hook of mkdocs: it fills in generated parts, and makes a page of each benchmark's JSON.

A page asks for a generated part with a comment on a line of its own:
`<!-- generated: options -->`. mkdocs puts this file's folder on the module path while it loads it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from generator import (
    benchmark_page,
    command_line,
    error_classes,
    options,
    python_api,
    recipes,
    structure_figures,
)

PARTS = {
    "command-line": command_line.page,
    "error-classes": error_classes.page,
    "options": options.page,
    "generation-config": options.generation_config_page,
    "python-api": python_api.page,
    "settings-of-a-recipe": recipes.settings_page,
    "shipped-recipes": recipes.shipped_page,
    "structure-figures": structure_figures.page,
    "benchmark-list": lambda: benchmark_page.listing(runs()),
}
ASKED = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)


def runs() -> list[Path]:
    """The files that `gptx bench --json` wrote, the newest first."""
    return sorted((Path(__file__).parent / "benchmarks").glob("*.json"), reverse=True)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each comment by the part that it asks for. KeyError for a part that nobody makes."""
    return ASKED.sub(lambda match: PARTS[match[1]](), markdown)


def on_config(config: Any) -> Any:
    """List each benchmark's page in the navigation, before the earlier measurements."""
    pages = next(entry["Benchmarks"] for entry in config.nav if "Benchmarks" in entry)
    pages[1:1] = [f"benchmarks/{run.stem}.md" for run in runs()]
    return config


def on_files(files: Files, config: Any) -> Files:
    for run in runs():
        name = f"benchmarks/{run.stem}.md"
        files.append(File.generated(config, name, content=benchmark_page.page(run)))
    return files
