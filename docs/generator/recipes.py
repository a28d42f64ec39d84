"""The training recipes that ship with gptx, and the settings that a recipe has."""

from __future__ import annotations

from importlib import resources

from generator.markdown import escaped, table
from gptx_models.training.recipe import Recipe, recipe_names, settings


def shipped_page() -> str:
    parts = []
    for name in recipe_names():
        text = resources.files("gptx_models.recipes").joinpath(f"{name}.toml").read_text("utf-8")
        parts.append(f"### {name}\n\n```toml\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def settings_page() -> str:
    defaults = {name: one.default for name, one in Recipe.__dataclass_fields__.items()}
    rows = []
    for name, (kind, says) in settings().items():
        allowed = ", ".join(f"`{value}`" for value in kind) if isinstance(kind, tuple) else ""
        default = defaults[name] if isinstance(defaults[name], str | int | float) else ""
        rows.append(
            (f"`{name}`", f"`{default}`" if default != "" else "", f"{escaped(says)} {allowed}")
        )
    return table(["setting", "default", "what it is"], rows)
