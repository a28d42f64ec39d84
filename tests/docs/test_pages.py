"""The pages say what the code says, and their prose has the form that we want."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
import yaml

import gptx
from builders.native_graphs import needs_library
from generator import (
    benchmark_page,
    command_line,
    drawings,
    error_classes,
    options,
    python_api,
    recipes,
    samples,
)
from gptx.cli import VERBS, group
from gptx.generation.options import SPECS
from gptx_models.training.recipe import recipe_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PROSE = 100  # columns
BLOCK = re.compile(r"^```(?:sh|bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_verb_has_its_options_on_the_page() -> None:
    page = command_line.page()
    for verb in VERBS:
        assert f"## gptx {verb}\n" in page
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[-1] in page


def test_every_public_name_is_on_a_page() -> None:
    pages = python_api.page() + error_classes.page()
    for name in set(gptx.__all__) - {"__version__"}:
        assert f"## gptx.{name}\n" in pages or f"`{name}`" in pages, name


def test_every_option_is_on_the_page() -> None:
    page = options.page()
    assert all(f"`{name}`" in page for name in SPECS)


def test_every_training_recipe_is_on_the_page() -> None:
    page = recipes.shipped_page()
    assert all(f"### {name}\n" in page for name in recipe_names())


def test_every_quantization_recipe_is_on_the_page() -> None:
    command = group.get_command(click.Context(group), "quantize")
    assert command is not None
    kind = next(one.type for one in command.params if one.name == "to")
    assert isinstance(kind, click.Choice)
    page = (DOCS / "reference" / "recipes.md").read_text("utf-8")
    assert set(kind.choices) == set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))


def test_frequent_messages_stand_in_the_code() -> None:
    page = (DOCS / "reference" / "errors.md").read_text("utf-8").split("## Frequent messages")[1]
    messages = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(messages) > 8
    files = [file for folder in ("runtime", "gpt_export") for file in (ROOT / folder).rglob("*.py")]
    code = " ".join(" ".join(file.read_text("utf-8") for file in files).split())
    code = re.sub(r'" f?"', "", code)  # texts that are written over two lines
    for message in messages:
        for part in filter(None, (part.strip() for part in message.split("..."))):
            assert part in code, message


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_drawings_are_what_the_program_makes(name: str) -> None:
    made = drawings.DRAWINGS[name]()
    assert (DOCS / "drawings" / f"{name}.svg").read_text("utf-8") == made
    assert any(f"drawings/{name}.svg" in page.read_text("utf-8") for page in PAGES)


@needs_library
def test_samples_are_what_the_default_model_gives() -> None:
    assert samples.PAGE.read_text("utf-8").endswith(f"\n{samples.samples()}")


def test_pages_named_in_the_code_exist() -> None:
    named = set()
    for folder in ("runtime", "gpt_export", "models"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".h", ".cpp"):
                text = file.read_text("utf-8")
                named |= set(re.findall(r"(?<![\w./])docs/[\w./-]+\.md\b", text))
    assert len(named) > 4
    assert not {name for name in named if not (ROOT / name).exists()}


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert listed == {page.relative_to(DOCS).as_posix() for page in PAGES}


@pytest.mark.parametrize(
    "file", sorted((DOCS / "benchmarks").glob("*.json")), ids=lambda file: file.stem
)
def test_a_benchmark_page_has_machine_versions_command_and_engines(file: Path) -> None:
    page, run = benchmark_page.page(file), json.loads(file.read_text("utf-8"))
    assert run["command"] in page.replace(" \\\n   ", "") and run["cpu"] in page.replace("\\", "")
    assert run["versions"]["gptx"] in page
    for engine in run["engines"]:
        assert engine["engine"] in page.replace("\\", "")
        for version in engine["versions"].values():
            assert version in page


def paragraphs(page: Path) -> list[str]:
    """Prose only: no code, no tables, no headings, no drawings."""
    text = page.read_text("utf-8").removeprefix("---\nhide:\n  - navigation\n---\n")
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    parts = (part.strip("\n") for part in re.split(r"\n\s*\n", text))
    return [
        part for part in parts if part and part[0] not in "|#!<" and not part.startswith("    ")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_prose_is_narrow_and_its_paragraphs_short(page: Path) -> None:
    for paragraph in paragraphs(page):
        lines = paragraph.splitlines()
        assert max(map(len, lines)) <= PROSE, paragraph
        if not re.match(r"[-\d*]", lines[0]) and lines[1:2] != [":   "]:
            assert len(lines) <= 6, paragraph


def command_lines() -> list[tuple[str, str]]:
    """The lines of code blocks that begin with gptx, each with its page; continued ones joined."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for block in re.findall(
            r"^```(?:sh|bash|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
        ):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line) for line in lines if re.match(r"gptx [a-z]+ ", line)]
    return found


def test_every_option_in_a_code_block_is_one() -> None:
    assert len(command_lines()) > 30
    for page, line in command_lines():
        verb, text = line.split()[1], line.partition("#")[0]
        command = group.get_command(click.Context(group), verb)
        assert command is not None, (page, line)
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        given = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))
        assert given <= known | {"--help"}, (page, line)
