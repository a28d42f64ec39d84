"""The options of a generation, made from the fields of `gptx.generation.options.Options`;
and the fields of generation_config.json, by what gptx makes of them."""

from __future__ import annotations

from typing import Any

from generator.markdown import escaped, table
from gptx.generation.generation_config import FIELDS
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
    return "" if value in (None, ()) else f"`{value}`"


def _says(spec: OptionSpec) -> str:
    return escaped(spec.help) + (" Only in sampling." if spec.sampling_only else "")


ROLES = {
    "option": "obeyed, unless the call gives the option",
    "rule": "obeyed; no option of a call",
    "token": "obeyed; the ends of a text are also in gptx.json",
    "not obeyed": "gptx warns when the artifact is exported and when it is loaded",
    "no effect": "changes no text",
}


def generation_config_page() -> str:
    rows = []
    for role, says in ROLES.items():
        names = ", ".join(f"`{name}`" for name, found in FIELDS.items() if found == role)
        rows.append((says, names))
    return table(["what gptx does", "fields"], rows)
