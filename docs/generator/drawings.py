"""The drawings of the explanations, as SVG files in docs/drawings.

`python docs/generator/drawings.py` writes them; a test compares them with what it makes. Text
stands in filled boxes, lines and captions are a grey that shows on white and on black. So one
file serves light and dark pages.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "drawings"
GREY = "#808b97"
BLUE, GREEN, ORANGE, PALE = (
    "#3949ab",
    "#2e7d32",
    "#bf4d00",
    "#546e7a",
)  # white text is readable on each
WIDTH = 640


def box(
    x: float, y: float, width: float, height: float, colour: str, *lines: str, size: int = 17
) -> str:
    """A filled box with centred lines of white text, the first one bold."""
    step = size * 1.3
    top = y + height / 2 - step * (len(lines) - 1) / 2
    parts = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{colour}"/>']
    for number, line in enumerate(lines):
        weight = "700" if number == 0 else "400"
        parts.append(_text(x + width / 2, top + number * step, line, size=size, weight=weight))
    return "".join(parts)


def caption(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 16) -> str:
    return _text(x, y, text, size=size, fill=GREY, anchor=anchor, weight="600")


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return (
        f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" stroke="{GREY}" stroke-width="2.5" '
        'marker-end="url(#tip)"/>'
    )


def frame(x: float, y: float, width: float, height: float) -> str:
    """An empty box with a dashed border."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="none" '
        f'stroke="{GREY}" stroke-width="2" stroke-dasharray="6 5"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int,
    fill: str = "#ffffff",
    anchor: str = "middle",
    weight: str = "400",
) -> str:
    return (
        f'<text x="{x}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="{anchor}" dominant-baseline="central">{html.escape(text)}</text>'
    )


def svg(height: float, title: str, parts: Iterable[str]) -> str:
    tip = (
        '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0L10 5L0 10z" fill="{GREY}"/></marker>'
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif">\n<title>{title}</title>\n<defs>{tip}</defs>\n'
        f"{body}\n</svg>\n"
    )


def pipeline() -> str:
    stages = [
        ("checkpoint", "PyTorch weights, tokenizer", PALE),
        ("artifact, fp32", "ONNX graph, certificate", BLUE),
        ("artifact, int8 or int4", "same folder, smaller weights", BLUE),
        ("your app", "no PyTorch, no ONNX package", GREEN),
    ]
    verbs = [
        ("gptx export", "compared with PyTorch"),
        ("gptx quantize", "compared with fp32"),
        ("gptx run, import gptx", "on any machine"),
    ]
    parts = [
        box(20, 0, 280, 46, PALE, "text file", size=18),
        box(340, 0, 280, 46, PALE, "GGUF, Hugging Face, ...", size=18),
    ]
    parts += [
        arrow(160, 46, 240, 108),
        arrow(480, 46, 400, 108),
        caption(110, 80, "gptx train"),
        caption(530, 80, "gptx import"),
    ]
    for number, (name, what, colour) in enumerate(stages):
        parts.append(box(120, 110 + 120 * number, 400, 64, colour, name, what, size=18))
    for number, (verb, what) in enumerate(verbs):
        y = 174 + 120 * number
        parts += [
            arrow(320, y, 320, y + 54),
            caption(308, y + 27, verb, anchor="end"),
            caption(338, y + 27, what, anchor="start"),
        ]
    parts += [caption(530, 490, "gptx verify", anchor="start", size=15), arrow(575, 478, 524, 394)]
    return svg(540, "The pipeline of gptx", parts)


def kv_cache() -> str:
    parts = []
    rows = [
        ("shared", "one buffer, written in place", 8, 5),
        ("growing", "each step returns a longer copy", 6, 5),
        ("scatter", "one buffer, TensorScatter writes", 8, 5),
    ]
    for number, (name, what, places, held) in enumerate(rows):
        y = 40 + 140 * number
        parts.append(caption(10, y - 18, f"{name}: {what}", anchor="start", size=18))
        if name == "growing":
            for place in range(held):
                parts.append(box(10 + 52 * place, y, 46, 46, PALE, f"k{place}", size=15))
            parts += [arrow(278, y + 23, 318, y + 23)]
            for place in range(places):
                colour = ORANGE if place == held else BLUE
                parts.append(box(326 + 52 * place, y, 46, 46, colour, f"k{place}", size=15))
            parts.append(caption(10, y + 68, "old copy", anchor="start"))
            parts.append(caption(326, y + 68, "new copy with the new key", anchor="start"))
            continue
        for place in range(places):
            if place < held:
                parts.append(box(10 + 76 * place, y, 70, 46, BLUE, f"k{place}", size=15))
            elif place == held:
                parts.append(box(10 + 76 * place, y, 70, 46, ORANGE, f"k{place}", size=15))
            else:
                parts.append(frame(10 + 76 * place, y, 70, 46))
        parts.append(caption(10, y + 68, "held", anchor="start"))
        parts.append(caption(425, y + 68, "new key"))
        parts.append(caption(548, y + 68, "room"))
    return svg(430, "The three forms of the KV cache", parts)


def quantization() -> str:
    floats = ["0.31", "-0.02", "0.18", "-0.25", "1.10", "-0.64", "0.07", "0.90"]
    levels = ["127", "-8", "74", "-102", "127", "-74", "8", "104"]
    gptq = ("GPTQ rounds one column after the other", "and corrects the columns that are left")
    parts = [
        caption(320, 16, "a row of weights, fp32: 4 bytes each", size=18),
        *(box(10 + 78 * i, 34, 72, 44, PALE, one, size=15) for i, one in enumerate(floats)),
        arrow(166, 82, 166, 118),
        arrow(474, 82, 474, 118),
        caption(166, 136, "block 0: scale 0.31/127"),
        caption(474, 136, "block 1: scale 1.10/127"),
        *(box(10 + 78 * i, 154, 72, 44, BLUE, one, size=15) for i, one in enumerate(levels)),
        caption(320, 220, "levels in int8: 1 byte each, and one scale for a block", size=18),
        arrow(320, 236, 320, 270),
        box(10, 274, 620, 60, ORANGE, *gptq, size=17),
        arrow(320, 338, 320, 366),
        box(10, 370, 300, 60, GREEN, "activations, 8 bits", "a scale for a token's block", size=16),
        box(330, 370, 300, 60, GREEN, "or two terms of 8 bits", "x = s (q1 + q2/254)", size=16),
    ]
    return svg(440, "How weights and activations become 8-bit numbers", parts)


def certificate() -> str:
    compared = ("compare the logits of each position", "KL, top-1, perplexity, largest difference")
    reference = ("gptx_reference.safetensors", "64 highest logits, seal")
    parts = [
        box(10, 10, 280, 60, PALE, "proof text", "4,096 tokens"),
        box(10, 120, 280, 60, BLUE, "reference", "PyTorch, or the fp32 artifact"),
        box(350, 120, 280, 60, BLUE, "this artifact", "ONNX Runtime"),
        arrow(120, 70, 120, 116), arrow(290, 50, 430, 116),
        box(130, 240, 380, 60, ORANGE, *compared),
        arrow(150, 180, 230, 236), arrow(490, 180, 410, 236),
        box(10, 350, 300, 60, GREEN, "gptx.json", "figures, limits, hashes", size=15),
        box(330, 350, 300, 60, GREEN, *reference, size=15),
        arrow(230, 300, 170, 346), arrow(410, 300, 470, 346),
        frame(10, 450, 620, 70),
        caption(320, 474, "gptx verify, on any machine and without PyTorch:", size=17),
        caption(320, 498, "runs the artifact and compares it with both files", size=17),
        arrow(160, 410, 160, 446), arrow(480, 410, 480, 446),
    ]  # fmt: skip
    return svg(530, "How a certificate is made, and proved again", parts)


def strangers() -> str:
    parts = [
        frame(10, 10, 620, 250),
        caption(30, 34, "the artifact's folder", anchor="start", size=18),
        box(30, 56, 280, 56, BLUE, "gptx.json", "at most 64 MB, checked first", size=16),
        box(330, 56, 280, 56, BLUE, "listed files", "plain files, size as listed", size=16),
        box(30, 126, 280, 56, ORANGE, "chat template", "sandbox: 5 s, 256 MB", size=16),
        box(330, 126, 280, 56, ORANGE, "ONNX graph", "ONNX Runtime's own operators", size=16),
        box(30, 192, 280, 56, PALE, "any other file", "never opened", size=16),
        box(330, 192, 280, 56, PALE, "Python code, pickles", "never run", size=16),
        arrow(320, 262, 320, 302),
        box(120, 306, 400, 60, GREEN, "your process", "text, memory for weights and cache"),
        caption(320, 396, "no files outside, no network, no programs", size=18),
    ]
    return svg(415, "What a stranger's artifact can reach", parts)


DRAWINGS = {
    "pipeline": pipeline,
    "kv-cache": kv_cache,
    "quantization": quantization,
    "certificate": certificate,
    "strangers": strangers,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw(), "utf-8")


if __name__ == "__main__":
    main()
