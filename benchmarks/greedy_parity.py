"""Compare greedy text of an fp32 artifact with transformers' generate on 20 prompts.

    python benchmarks/greedy_parity.py smollm2-onnx smollm2

Both generate the same number of tokens (min_new_tokens). After a divergence, the artifact continues
from transformers' text, so that later divergences are found too. Each is printed with its leads: by
how much, in logits, each side prefers its own token to the other's. Up to twice the certificate's
fp32 limit, the tokens are nearly tied and the choice is noise. The exit status is 1 if anything
else differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import gptx
from gptx.bench.machine import lines, machine
from gptx.parity.limits import LIMITS
from gptx.system.cpu import cpu_cores
from gptx.verify import forced_logits
from table import table
from tracked import tracked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROMPTS = (
    "Once upon a time",
    "What is the capital of France?",
    "The meaning of life is",
    "In 1969, the first man",
    "def fibonacci(n):\n    ",
    "import numpy as np\n\ndef softmax(x):",
    "Q: How many legs does a spider have?\nA:",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 2, 3, 4, 5, 6,",
    "The quick brown fox jumps over the lazy dog.",
    "SELECT name, COUNT(*) FROM users",
    "Water boils at",
    "La capitale de la France est",
    "Der Hund lief über die Straße und",
    "今日はとても",
    "Ingredients:\n- 2 eggs\n- 100 g of flour\n-",
    "<html>\n  <head>\n    <title>",
    "E = mc^2 means that",
    '"I don\'t know," said Alice 😀,',
    "The theory of evolution by natural selection was proposed by",
)


@dataclass(frozen=True)
class Divergence:
    prompt: str
    at: int  # number of new tokens before the divergence
    theirs: str
    ours: str
    their_lead: float  # of transformers' token over ours, in transformers' logits
    our_lead: float  # of our token over transformers', in the artifact's logits
    near_tie: bool


@dataclass(frozen=True)
class Pair:
    model: gptx.Model
    reference: Any  # a transformers PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def main() -> None:
    args = arguments()
    facts = machine("onnxruntime", "torch", "transformers", "tokenizers")
    print(*lines(facts), sep="\n", flush=True)
    pair = opened(args.artifact, args.checkpoint, args.threads)
    prompts = args.prompts.read_text("utf-8").splitlines() if args.prompts else list(PROMPTS)
    other_ids, other_text, divergences = [], [], []
    for prompt in tracked(prompts, "prompts"):
        ids = pair.model.encode(prompt)
        if ids != pair.tokenizer(prompt).input_ids:
            other_ids.append(prompt)
        found, same_text = compare(pair, prompt, ids, args.tokens)
        divergences += found
        if not found and not same_text:
            other_text.append(prompt)
    diverged = len({one.prompt for one in divergences})
    bad = [one for one in divergences if not one.near_tie]
    print(
        f"{args.artifact.name} against transformers' generate on {args.checkpoint.name}: "
        f"{len(prompts) - diverged - len(other_text)} of {len(prompts)} texts"
        f" of {args.tokens} tokens are identical; "
        f"{len(divergences)} divergences, {len(divergences) - len(bad)} of them near-ties"
    )
    if divergences:
        print("\n" + report(divergences) + "\n")
    for prompt in other_ids:
        print(f"the two tokenizers differ on {prompt!r}")
    for prompt in other_text:
        print(f"the same tokens make another text after {prompt!r}")
    text = json.dumps(
        {
            "benchmark": "greedy_parity",
            **facts,
            "prompts": len(prompts),
            "tokens": args.tokens,
            "identical": len(prompts) - diverged - len(other_text),
            "divergences": [asdict(one) for one in divergences],
            "other_ids": other_ids,
            "other_text": other_text,
        }
    )
    if args.json:
        args.json.write_text(text + "\n", "utf-8")
    print(text)
    sys.exit(1 if bad or other_ids or other_text else 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="one prompt per line, instead of the 20 built in",
    )
    parser.add_argument("--threads", type=int, default=cpu_cores())
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def opened(artifact: Path, checkpoint: Path, threads: int) -> Pair:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return Pair(
        gptx.load(artifact, threads=threads),
        reference.eval(),
        AutoTokenizer.from_pretrained(checkpoint),
    )


def compare(pair: Pair, prompt: str, ids: list[int], n: int) -> tuple[list[Divergence], bool]:
    """All divergences over n tokens; and, if there are none, whether the texts are equal."""
    theirs = generated(pair, ids, n)
    their_text = pair.tokenizer.decode(
        theirs, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    found, at, same_text = [], 0, True
    while at < n:
        prefix = [*ids, *theirs[:at]]
        left = n - at
        ours = pair.model.generate(
            prefix,
            max_new_tokens=left,
            min_new_tokens=left,
            temperature=0.0,
            repetition_penalty=1.0,
        )
        same_text = at > 0 or ours.text == their_text
        same = next(
            (i for i, (a, b) in enumerate(zip(ours.token_ids, theirs[at:])) if a != b), left
        )
        at += same
        if at < n:
            found.append(
                divergence(pair, prompt, [*ids, *theirs[:at]], at, theirs[at], ours.token_ids[same])
            )
            at += 1
    return found, same_text


def generated(pair: Pair, ids: list[int], n: int) -> list[int]:
    """transformers' greedy tokens, without the sampling and penalties of generation_config.json."""
    import torch
    from transformers import GenerationConfig

    given = pair.reference.generation_config
    ends = given.eos_token_id if given else None
    last = ends[0] if isinstance(ends, list) else ends
    config = GenerationConfig(
        min_new_tokens=n, max_new_tokens=n, do_sample=False, eos_token_id=ends, pad_token_id=last
    )
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        output = pair.reference.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=config
        )
    return output[0, len(ids) :].tolist()


def divergence(
    pair: Pair, prompt: str, prefix: list[int], at: int, theirs: int, ours: int
) -> Divergence:
    import torch

    with torch.inference_mode():
        reference: np.ndarray = (
            pair.reference(torch.tensor([prefix]), use_cache=False).logits[0, -1].numpy()
        )
    logits = forced_logits(pair.model, prefix)[-1]
    limits = LIMITS["fp32"]
    limit = max(limits["max_abs"], limits["relative"] * float(np.abs(reference).max()))
    leads = float(reference[theirs] - reference[ours]), float(logits[ours] - logits[theirs])
    words = pair.tokenizer.decode([theirs]), pair.tokenizer.decode([ours])
    return Divergence(prompt, at, *words, *leads, near_tie=max(leads) <= 2 * limit)


def report(divergences: list[Divergence]) -> str:
    heads = ["prompt", "after", "transformers", "gptx", "its lead", "our lead", ""]
    rows = [
        [
            repr(one.prompt),
            str(one.at),
            repr(one.theirs),
            repr(one.ours),
            f"{one.their_lead:.2g}",
            f"{one.our_lead:.2g}",
            "near-tie" if one.near_tie else "NOT A TIE",
        ]
        for one in divergences
    ]
    return table(heads, rows)


if __name__ == "__main__":
    main()
