"""Requests of several rows beside transformers: beam search, guidance, and several texts."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import gptx
from gpt_export.export import export_checkpoint
from gptx.errors import UsageError
from gptx.model import Model

VOCAB = 97
ENDS = [5, 17, 30, 44]


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=VOCAB, n_positions=256, n_embd=48, n_layer=2, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1 and "wpe" not in name:
                weights *= 8  # else all tokens are about equally likely
    return model


@pytest.fixture(scope="module")
def ours(theirs: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("beams")
    theirs.save_pretrained(folder / "checkpoint")
    (folder / "checkpoint" / "generation_config.json").unlink(missing_ok=True)
    export_checkpoint(folder / "checkpoint", folder / "fp32")
    return gptx.load(folder / "fp32", threads=1)


def their_texts(
    model: GPT2LMHeadModel, prompt: list[int], **options: Any
) -> tuple[list[list[int]], list[float]]:
    """transformers' new tokens, and their scores."""
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        eos_token_id=ENDS,
        pad_token_id=VOCAB - 1,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    texts = []
    for row in found.sequences[:, len(prompt) :].tolist():
        end = next((n + 1 for n, token in enumerate(row) if token in ENDS), len(row))
        texts.append(row[:end])
    scores = getattr(found, "sequences_scores", None)
    return texts, [] if scores is None else scores.tolist()


@pytest.mark.parametrize("seed", range(40))
def test_beams_are_those_of_transformers(ours: Model, theirs: GPT2LMHeadModel, seed: int) -> None:
    random = np.random.default_rng(seed)
    beams = int(random.integers(2, 7))
    options: dict[str, Any] = {
        "num_beams": beams,
        "num_return_sequences": int(random.integers(1, beams + 1)),
        "max_new_tokens": int(random.integers(1, 30)),
        "length_penalty": float(random.choice([-1.0, 0.0, 0.5, 1.0, 2.0])),
        "early_stopping": [False, True, "never"][int(random.integers(3))],
    }
    if seed % 3 == 0:
        options["repetition_penalty"] = 1.3
    if seed % 4 == 0:
        options["no_repeat_ngram_size"] = 3
    if seed % 5 == 0:
        options["min_new_tokens"] = min(5, options["max_new_tokens"])
    prompt = random.integers(0, VOCAB, int(random.integers(1, 100))).tolist()
    expected, scores = their_texts(theirs, prompt, **options)
    found = ours.generate([prompt], stop_tokens=ENDS, **options)
    assert [one.token_ids for one in found] == expected
    assert [one.score for one in found] == pytest.approx(scores, abs=1e-4)
    for one in found:
        last = one.token_ids[-1]
        assert one.finish_reason == ("stop" if last in ENDS else "length")


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("negative", [None, [9], list(range(40, 90))])
def test_guidance_is_that_of_transformers(
    ours: Model, theirs: GPT2LMHeadModel, scale: float, negative: list[int] | None
) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    more = {} if negative is None else {"negative_prompt_ids": torch.tensor([negative])}
    (expected,), _ = their_texts(
        theirs, prompt, guidance_scale=scale, max_new_tokens=30, use_cache=False, **more
    )
    found = ours.generate(
        prompt,
        guidance_scale=scale,
        negative_prompt=negative,
        max_new_tokens=30,
        stop_tokens=ENDS,
    )
    assert found.token_ids == expected
    plain = ours.generate(prompt, max_new_tokens=30, stop_tokens=ENDS)
    assert found.token_ids != plain.token_ids


def test_several_texts_are_those_of_their_seeds(ours: Model) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 12}
    prompts = [[1, 2, 3], list(range(90))]
    texts = ours.generate(prompts, num_return_sequences=3, seed=7, **options)
    assert [one.seed for one in texts] == [7, 8, 9, 10, 11, 12]
    for n, one in enumerate(texts):
        alone = ours.generate(prompts[n // 3], seed=7 + n, **options)
        assert alone.token_ids == one.token_ids
    of_one = ours.generate(prompts[0], num_return_sequences=2, seed=7, **options)
    assert [one.token_ids for one in of_one] == [one.token_ids for one in texts[:2]]
    later = asyncio.run(ours.generate_async(prompts[0], num_return_sequences=2, seed=7, **options))
    assert [one.token_ids for one in later] == [one.token_ids for one in of_one]


def test_a_prompt_is_read_once_for_all_its_texts(ours: Model) -> None:
    prompt = np.random.default_rng(1).integers(0, VOCAB, 200).tolist()
    before = ours.stats()
    ours.generate(prompt, num_return_sequences=5, temperature=1.0, seed=1, max_new_tokens=4)
    between = ours.stats()
    assert between.prompt_tokens - before.prompt_tokens <= 200 + 5 * 3
    ours.engine.forget()
    ours.generate(prompt, num_beams=5, max_new_tokens=4)
    assert ours.stats().prompt_tokens - between.prompt_tokens <= 200 + 5 * 64


def test_other_requests_beside_a_search(ours: Model) -> None:
    prompts = [list(range(n, n + 20)) for n in range(6)]
    alone = [ours.generate(one, max_new_tokens=20) for one in prompts]
    search = ours.generate([prompts[0]], num_beams=4, max_new_tokens=20)[0]
    ours.engine.forget()
    streams = [ours.submit(one, max_new_tokens=20) for one in prompts]
    beside = ours.submit(prompts[0], num_beams=4, max_new_tokens=20)
    guided = ours.submit(prompts[0], guidance_scale=2.0, max_new_tokens=20)
    assert [one.result().token_ids for one in streams] == [one.token_ids for one in alone]
    assert beside.result().token_ids == search.token_ids
    assert guided.result().token_ids
    assert ours.stats().rows == 0


def test_a_search_that_is_ended_early_gives_the_best_texts_so_far(ours: Model) -> None:
    cancel = threading.Event()
    steps = []

    def after_five(_: list[int], logits: np.ndarray) -> None:
        steps.append(len(logits))
        if len(steps) == 13:  # one text, then three
            cancel.set()

    found = ours.generate(
        [1, 2, 3],
        num_beams=3,
        num_return_sequences=2,
        max_new_tokens=50,
        cancel=cancel,
        logits_processor=after_five,
    )
    assert [one.finish_reason for one in found] == ["closed", "closed"]
    assert [len(one.token_ids) for one in found] == [5, 5]
    assert ours.stats().rows == 0


def test_log_probabilities_of_prompt_and_beams(ours: Model) -> None:
    prompt = list(range(3, 90))
    found = ours.generate(
        prompt, max_new_tokens=3, prompt_logprobs=True, top_logprobs=2, stop_tokens=ENDS
    )
    score = ours.score(prompt)
    assert found.prompt_logprobs == pytest.approx(score.logprobs, abs=1e-9)
    assert found.prompt_top_logprobs is not None and found.prompt_top_logprobs[0] is None
    assert all(len(top or {}) == 2 for top in found.prompt_top_logprobs[1:])
    (best,) = ours.generate([prompt], num_beams=3, max_new_tokens=6, logprobs=True)
    assert best.logprobs is not None and best.score is not None
    assert best.score == pytest.approx(sum(best.logprobs) / len(best.token_ids), abs=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_beams": 9}, "needs 9 rows at the same time"),
        ({"num_beams": 2, "temperature": 0.7}, "draws at random: give one of them"),
        ({"num_beams": 2, "num_return_sequences": 3}, "3, more than num_beams 2"),
        ({"num_return_sequences": 3}, "greedy decoding gives only one text"),
        ({"num_beams": 2, "on_token": print}, "num_beams does not go with on_token"),
        ({"num_beams": 2, "guidance_scale": 2}, "guidance_scale does not go with num_beams"),
        ({"negative_prompt": [1]}, "no effect without guidance_scale"),
        ({"guidance_scale": 2, "negative_prompt": [VOCAB]}, "outside the model's vocabulary"),
        ({"early_stopping": "soon"}, 'expected True, False or "never"'),
        ({"prompt_logprobs": 1}, "prompt_logprobs is 1, expected True or False"),
    ],
)
def test_options_that_do_not_go_together(
    ours: Model, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(gptx.GptxError, match=message):
        ours.generate([1, 2, 3], max_new_tokens=4, **options)


def test_one_stream_is_one_text(ours: Model) -> None:
    with pytest.raises(UsageError, match="this call gives one text"):
        ours.stream([1, 2, 3], temperature=1.0, num_return_sequences=2)
