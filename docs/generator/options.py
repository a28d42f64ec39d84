"""The options of a generation, made from the fields of `gptx.generation.options.Options`;
and the fields of generation_config.json, by what gptx does with them."""

from __future__ import annotations

import json
from typing import Any

from generator.markdown import escaped, table
from gptx.generation.generation_config import ROWS
from gptx.generation.options import DEFAULTS, SPECS, OptionSpec


def page() -> str:
    rows = [
        (
            f"`{name}`",
            _flag(name, spec),
            _default(DEFAULTS[name]),
            escaped(spec.kind.expected),
            _says(spec),
        )
        for name, spec in SPECS.items()
    ]
    return table(["keyword", "command line", "default", "values", "what it does"], rows)


def _flag(name: str, spec: OptionSpec) -> str:
    if not spec.on_command_line:
        return ""
    flag = f"`--{name.replace('_', '-')} {spec.metavar}`"
    return f"`{spec.letter}`, {flag}" if spec.letter else flag


def _default(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"`{json.dumps(one)}`" for one in value)
    return "" if value is None else f"`{value}`"


def _says(spec: OptionSpec) -> str:
    return escaped(spec.help) + (" Only in sampling." if spec.sampling_only else "")


DONE = {
    "option": "yes",
    "control": "yes",
    "rule": "yes, from the file only",
    "token": "yes",
    "not obeyed": "no: gptx warns at export and when the artifact is loaded",
    "no effect": "not needed",
}


def generation_config_page() -> str:
    rows = [
        (", ".join(f"`{name}`" for name in row.names), DONE[row.role], escaped(row.note))
        for row in ROWS
    ]
    return table(["fields", "done", "how, or why not"], rows)
