"""Check the fields of gptx.json: the JSON object in, a sentence for each fault out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, TypeGuard

from gptx.artifact.bounds import size_problem
from gptx.artifact.folders import MANIFEST
from gptx.artifact.layout import SECOND_GRAPHS, SIDE_FILES

PRECISIONS = ("fp32", "fp16", "int8", "int4")
CACHES = ("shared", "growing", "scatter")
CACHE_DTYPES = ("float32", "float16")
STEP_CACHE_DTYPES = (*CACHE_DTYPES, "int8")
MOST_PARAMETERS = 1 << 50
OBJECTS = ("model", "tokens", "files")
OPTIONAL_OBJECTS = ("compiled", "quantization", "source", "certificate", "upgraded")


def field_problems(raw: dict[str, Any], sizes: Iterable[str]) -> Iterator[str]:
    """Everything that is wrong with the fields of gptx.json. sizes: the fields of "model"."""
    yield from _choice_problems(raw)
    if not isinstance(raw.get("gptx_version"), str):
        yield f"gptx_version is {raw.get('gptx_version')!r}, expected a string"
    if problem := size_problem("prefill_chunk", raw.get("prefill_chunk")):
        yield problem
    for name in (*OBJECTS, *OPTIONAL_OBJECTS):
        if name in OPTIONAL_OBJECTS and not raw.get(name):
            continue
        if not isinstance(raw.get(name), dict):
            yield f"{name} is {raw.get(name)!r}, expected an object"
            return  # the checks below look into these objects
    yield from _certificate_problems(raw.get("certificate") or {})
    yield from _text_list_problems("compiled", raw.get("compiled") or {}, "cpu_features")
    for name, graph in SECOND_GRAPHS.items():
        if raw.get(name) not in (None, graph):
            yield f"{name} is {raw[name]!r}, expected {graph!r} or nothing"
    if raw.get("step_cache_dtype") not in (None, *STEP_CACHE_DTYPES):
        allowed = ", ".join(STEP_CACHE_DTYPES)
        yield f"step_cache_dtype is {raw['step_cache_dtype']!a:.80}, expected one of {allowed}"
    if not _is_count(raw.get("kernel_order", 1)):
        yield f"kernel_order is {raw['kernel_order']!a:.80}, expected a whole number"
    yield from _model_problems(raw["model"], sizes)
    yield from _token_problems(raw["tokens"])
    for name, facts in raw["files"].items():
        yield from _file_entry_problems(name, facts)


def _choice_problems(raw: dict[str, Any]) -> Iterator[str]:
    for name, allowed in (
        ("precision", PRECISIONS),
        ("cache", CACHES),
        ("cache_dtype", CACHE_DTYPES),
    ):
        if raw.get(name) not in allowed:
            yield f"{name} is {raw.get(name)!r}, expected one of {', '.join(allowed)}"


def _certificate_problems(certificate: dict[str, Any]) -> Iterator[str]:
    for name in (
        "figures", "consistency", "limits", "greedy", "environment", "verified", "portable",
    ):  # fmt: skip
        part = certificate.get(name, {})
        if not isinstance(part, dict):
            yield f"certificate.{name} is {part!a:.80}, expected an object"
        elif name != "environment":
            yield from _figure_problems(name, part)
    for name in ("passed", "accepted"):
        if not isinstance(certificate.get(name, False), bool):
            yield f"certificate.{name} is {certificate[name]!a:.80}, expected true or false"
    yield from _text_list_problems("certificate", certificate, "outside")
    yield from _text_list_problems("certificate", certificate, "decode")
    yield from _text_list_problems("certificate", certificate, "logits_sha256")
    links = certificate.get("chain") or []
    if not isinstance(links, list) or not all(isinstance(link, dict) for link in links):
        yield f"certificate.chain is {links!a:.80}, expected a list of objects"


def _figure_problems(name: str, part: dict[str, Any]) -> Iterator[str]:
    for key, value in part.items():
        if value is None or _is_figure(value):
            continue
        # A text or list as a limit is not reported here: gptx verify explains that fault better.
        if name != "limits" or isinstance(value, int):
            yield f"certificate.{name}.{key!a:.80} is {value!a:.80}, expected a number"


def _text_list_problems(where: str, part: dict[str, Any], name: str) -> Iterator[str]:
    texts = part.get(name) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        yield f"{where}.{name} is {texts!a:.80}, expected a list of texts"


def _model_problems(model: dict[str, Any], sizes: Iterable[str]) -> Iterator[str]:
    for name in sizes:
        value = model.get(name)
        if name == "n_class" and model.get(name, 0) == 0:
            continue
        if name == "n_parameters":
            if not (_is_count(value) and 0 < value <= MOST_PARAMETERS):
                yield f"model.{name} is {value!a:.80}, expected a positive whole number"
        elif problem := size_problem(f"model.{name}", value):
            yield problem


def _token_problems(tokens: dict[str, Any]) -> Iterator[str]:
    for name in ("vocab_size", "bos", "pad"):
        if tokens.get(name) is not None and not isinstance(tokens[name], int):
            yield f"tokens.{name} is {tokens[name]!r}, expected a number or null"
    eos = tokens.get("eos") or []
    if not isinstance(eos, list) or not all(isinstance(item, int) for item in eos):
        yield f"tokens.eos is {eos!r}, expected a list of token ids"


def _file_entry_problems(name: str, facts: Any) -> Iterator[str]:
    complete = (
        isinstance(facts, dict)
        and isinstance(facts.get("sha256"), str)
        and _is_count(facts.get("size"))
    )
    if not complete:
        yield f"files[{name!a:.80}] is {facts!a:.80}, expected its sha256 and size"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        yield f"files names {name!a:.80}, which lies outside the folder"
    elif not name.isprintable() or path.as_posix() != name or name in (".", MANIFEST):
        yield f"files names {name!a:.80}, which is no name of a file in the folder"
    elif complete and facts["size"] > SIDE_FILES.get(name, facts["size"]):
        yield f"{name} has {facts['size']:,} bytes, expected at most {SIDE_FILES[name]:,}"


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_figure(value: Any) -> bool:
    """True for a number that fits into a float."""
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and value <= 2**63)
