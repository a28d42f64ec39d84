"""Checked tokens and options in, the work of generating a text out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptx.artifact.manifest import Manifest
from gptx.engine.allowed import Allowed
from gptx.engine.beams import Beams
from gptx.engine.control import Control
from gptx.engine.generate import Generate
from gptx.engine.matcher import Matcher
from gptx.errors import UsageError, warn
from gptx.generation.options import Options
from gptx.generation.resolve_options import FROM_FILE
from gptx.generation.row_plan import plan_row
from gptx.generation.sampling import Sampler
from gptx.generation.transcript import Transcript

Text = Generate | Beams
FORCED = ("forced_bos_token_id", "forced_eos_token_id")


def new_text(
    ids: Sequence[int],
    options: Options,
    control: Control,
    transcript: Transcript,
    *,
    manifest: Manifest,
    keep: int,
    matcher: Matcher | None,
    negative: Sequence[int] | None,
) -> Text:
    """The Work that continues a prompt; see Generate for the arguments.

    negative: the tokens of control.negative_prompt.
    """
    tokens, n_ctx = manifest.tokens, manifest.model.n_ctx
    if options.guidance_scale != 1 and negative is None:
        negative = ids[-1:]  # as in transformers
    longer = max(len(negative or ()) - len(ids), 0)  # than the prompt
    slides = control.overflow == "slide"
    plan = plan_row(options, len(ids), eos=tokens.eos, n_ctx=n_ctx - longer, slides=slides)
    known = tokens.vocab_size or manifest.model.vocab_size
    allowed = Allowed.of_plan(plan, known, control.logits_processor)
    sampler = Sampler(
        options,
        prompt=ids,
        end_tokens=plan.end_tokens,
        seed=options.seed,
        n_logits=allowed.width,
        max_length=len(ids) + plan.limit if plan.limit_reason == "length" else None,
    )
    top = control.top_logprobs > 0
    if control.logprobs:
        transcript.begin_logprobs(top=top)
    if control.prompt_logprobs:
        transcript.begin_prompt_logprobs(top=top)
    if options.num_beams > 1:
        return Beams(
            ids,
            plan,
            sampler,
            transcript,
            options=options,
            allowed=allowed,
            control=control,
            n_ctx=n_ctx,
        )
    return Generate(
        ids,
        plan,
        sampler,
        transcript,
        allowed=allowed,
        control=control,
        n_ctx=n_ctx,
        keep=keep,
        matcher=matcher,
        negative=negative,
        guidance_scale=options.guidance_scale,
    )


def without_forced(
    generation: Mapping[str, Any], given: Mapping[str, Any], control: Control
) -> Mapping[str, Any]:
    """generation_config.json without forced tokens, if the text follows a grammar.

    given: the options of the call. Warns (GptxWarning) that the file's have no effect.
    """
    if control.grammar is None:
        return generation
    for name in FORCED:
        if given.get(name) is None and generation.get(name) is not None:
            warn(f"{name}{FROM_FILE} has no effect with response_format or json_schema")
    return {name: value for name, value in generation.items() if name not in FORCED}


def check_together(options: Options, control: Control) -> None:
    """Raise UsageError for options that do not go together."""
    if problems := list(_apart(options, control)):
        raise UsageError("; ".join(problems))


def _apart(options: Options, control: Control) -> Iterator[str]:
    slides = control.overflow == "slide"
    if control.negative_prompt is not None and options.guidance_scale == 1:
        yield "negative_prompt has no effect without guidance_scale"
    if options.guidance_scale != 1:
        for name, given in (
            ("overflow slide", slides),
            ("prompt_logprobs", control.prompt_logprobs),
            ("num_beams", options.num_beams > 1),
        ):
            if given:
                yield f"guidance_scale does not go with {name}"
    if control.grammar is not None:
        for name in FORCED:
            if getattr(options, name) not in (None, ()):
                yield f"response_format or json_schema does not go with {name}"
    if options.num_beams > 1:
        for name, given in (
            ("overflow slide", slides),
            ("prompt_logprobs", control.prompt_logprobs),
            ("on_token", control.on_token is not None),
            ("response_format or json_schema", control.grammar is not None),
        ):
            if given:
                yield f"num_beams does not go with {name}"
