"""generation_config.json: gptx obeys a field as transformers does, or names it in a warning.

Fields that are neither obeyed nor named must not change the text.
"""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import gptx
from builders.tiny_artifact import write_artifact
from gpt_export.export import export_checkpoint
from gpt_export.genai_search import not_in_genai_config, note_unsupported, search
from gpt_export.side_files import write_genai_config
from gptx.errors import CheckpointError, GptxWarning, OutputError, PromptError, UsageError
from gptx.generation.filters import typical
from gptx.generation.generation_config import FIELDS, unsupported
from gptx.generation.generation_rules import NO_RULES, read_rules
from gptx.generation.logits_processors import processors
from gptx.generation.options import SPECS
from gptx.generation.resolve_options import resolve
from gptx.generation.sampling import Sampler
from gptx.inspect import generation_in_words
from gptx.model import Model
from gptx_models.checkpoints.side_files import read_side_files

PROMPT = "the cat sat"


# Prompt, fields of generation_config.json -> new tokens
Reference = Callable[[list[int], dict[str, Any]], list[int]]


@pytest.fixture(scope="module")
def pair(checkpoint: Path, fp32: Path) -> tuple[Reference, Model]:
    """transformers' generate, and our model with the same weights."""
    theirs, ours = (
        transformers.AutoModelForCausalLM.from_pretrained(checkpoint),
        gptx.load(fp32, threads=1),
    )
    # Ids of the padded vocabulary that are no tokens
    empty = range(ours.manifest.tokens.vocab_size or 0, ours.manifest.model.vocab_size)

    class Empty(transformers.SuppressTokensLogitsProcessor):
        """A class of its own.

        transformers lets a processor that is given replace its own processor of the same class,
        which it makes from suppress_tokens.
        """

    processors = transformers.LogitsProcessorList([Empty(empty)])

    def reference(ids: list[int], fields: dict[str, Any]) -> list[int]:
        config = transformers.GenerationConfig(**{"eos_token_id": 0, "pad_token_id": 0, **fields})
        out = theirs.generate(
            torch.tensor([ids]), generation_config=config, logits_processor=processors
        )
        return out[0, len(ids) :].tolist()

    return reference, ours


def test_the_table_has_transformers_fields() -> None:
    """And gptx's own options, but those that only a call can give."""
    of_version_5 = {"top_h"}
    only_a_call = {"seed", "stop", "stop_tokens", "num_return_sequences"}
    theirs = set(vars(transformers.GenerationConfig())) | of_version_5
    assert set(FIELDS) == theirs | set(SPECS) - only_a_call
    options = {name for name, role in FIELDS.items() if role == "option"}
    assert options == set(SPECS) - only_a_call | {"do_sample", "stop_strings"}
    assert {name for name, role in FIELDS.items() if role == "rule"} == set(vars(NO_RULES))


def test_the_page_has_the_arguments_of_generate() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/options.md").read_text("utf-8")
    arguments = set(inspect.signature(transformers.GenerationMixin.generate).parameters)
    for name in arguments - {"self", "kwargs"}:
        assert f"`{name}`" in page, name


def ends(fields: dict[str, Any]) -> dict[str, Any]:
    """The end tokens of a test.

    The artifact of `pair` ends at token 0 whatever fields a test sets, so other end tokens are
    given to the call.
    """
    return (
        {"stop_tokens": fields["eos_token_id"]}
        if isinstance(fields.get("eos_token_id"), list)
        else {}
    )


# They stand for the first three tokens that the model writes without any field.
A, B, C = "A", "B", "C"
GREEDY: dict[str, dict[str, Any]] = {
    "nothing": {},
    "suppress_tokens": {"suppress_tokens": [A, B, -1, 100_000]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [A]},
    "bad words": {"bad_words_ids": [[A], [B, C], [0]]},
    "a longer bad word": {"bad_words_ids": [[A, B, C]]},
    "sequence_bias": {"sequence_bias": [[[A], -100.0], [[B, C], 2.5]]},
    "a bias for a sequence": {
        "sequence_bias": [[[A, B], -1.0], [[A, B, C], -50.0], [[B, C], -0.5]]
    },
    "no_repeat_ngram_size 1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_size 2": {"no_repeat_ngram_size": 2, "max_new_tokens": 40},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 9.5},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "forced_eos_token_id": {"forced_eos_token_id": 0, "max_new_tokens": 6},
    "several forced": {"forced_eos_token_id": [2, 1], "max_new_tokens": 6},
    "forced at max_length": {"forced_eos_token_id": 0, "max_length": 9, "max_new_tokens": None},
    "max_length": {"max_length": 9, "max_new_tokens": None},
    "max_length as 9.0": {"max_length": 9.0, "max_new_tokens": None},
    "max_new_tokens as 5.0": {"max_new_tokens": 5.0},
    "max_length of 20, transformers' default": {"max_length": 20, "max_new_tokens": None},
    "max_new_tokens beats max_length": {"max_length": 5, "max_new_tokens": 8},
    "min_length": {"min_length": 15, "eos_token_id": [A, B, C]},
    "min_new_tokens": {"min_new_tokens": 7, "eos_token_id": [A, B, C]},
    "min_new_tokens beats min_length": {
        "min_length": 15,
        "min_new_tokens": 2,
        "eos_token_id": [A, B, C],
    },
    "a minimum over the maximum": {"min_new_tokens": 30, "max_new_tokens": 5},
    "exponential_decay_length_penalty": {
        "exponential_decay_length_penalty": [2, 1.6],
        "eos_token_id": [1, 2],
    },
    "a decay that goes on": {
        "exponential_decay_length_penalty": [1, 1.05],
        "eos_token_id": [1, 2],
        "max_new_tokens": 40,
    },
    "all at once": {
        "suppress_tokens": [A],
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.2,
        "min_length": 9,
        "bad_words_ids": [[B]],
        "sequence_bias": [[[C], 1.5]],
        "forced_eos_token_id": 0,
        "max_new_tokens": 15,
    },
}


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_as_transformers(pair: tuple[Reference, Model], name: str) -> None:
    reference, ours = pair
    ids = ours.encode(PROMPT)
    first = reference(ids, {"max_new_tokens": 3})
    ids += first if "encoder" in name else []  # those fields look at the prompt alone
    text = json.dumps({"max_new_tokens": 12, **GREEDY[name]})
    for letter, token in zip("ABC", first):
        text = text.replace(f'"{letter}"', str(token))
    fields = json.loads(text)
    expected = reference(ids, fields)
    if name not in ("nothing", "max_new_tokens beats max_length", "a minimum over the maximum"):
        assert expected != reference(ids, {"max_new_tokens": 12})  # else the field is not tested
    ours.generation = fields
    options = ends(fields)
    assert ours.generate(ids, **options).token_ids == expected
    assert [one.token_ids for one in ours.generate([ids, ids], **options)] == [expected, expected]
    with ours.stream(ids, **options) as stream:
        list(stream)
    assert stream.completion.token_ids == expected


def test_forced_bos_as_transformers(pair: tuple[Reference, Model]) -> None:
    """forced_bos_token_id acts only behind a prompt of one token.

    It also moves the place where begin_suppress_tokens act.
    """
    reference, ours = pair
    second = reference([40], {"forced_bos_token_id": 7, "max_new_tokens": 2})[1]
    fields = {"forced_bos_token_id": 7, "begin_suppress_tokens": [7, second], "max_new_tokens": 8}
    for ids in ([40], [40, 41]):
        ours.generation = fields
        assert ours.generate(ids).token_ids == reference(ids, fields)
        assert (ours.generate(ids).token_ids[0] == 7) is (len(ids) == 1)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "temperature": 0.0,
            "top_p": 0.0,
            "top_k": -1,
            "min_p": 7.0,
            "typical_p": -3,
            "epsilon_cutoff": "a",
        },
        {
            "use_cache": False,
            "prompt_lookup_num_tokens": 3,
            "renormalize_logits": True,
            "remove_invalid_values": True,
        },
        {
            "length_penalty": 2.0,
            "early_stopping": True,
            "num_beam_groups": 2,
            "diversity_penalty": 1.0,
            "made_up": [],
        },
        {"penalty_alpha": -0.6, "top_h": 0.4},
        {
            "penalty_alpha": 0.6,
            "top_k": 1,
            "cache_implementation": "static",
            "do_sample": None,
            "stop_strings": None,
        },
        dict.fromkeys(FIELDS),
    ],
    ids=[
        "only sampling reads them",
        "another way to the same",
        "only beams read them",
        "not in greedy",
        "conditions not met",
        "null",
    ],
)
def test_what_changes_nothing(pair: tuple[Reference, Model], fields: dict[str, Any]) -> None:
    reference, ours = pair
    ours.generation = {**fields, "max_new_tokens": 12}
    assert ours.generate(PROMPT).token_ids == reference(ours.encode(PROMPT), {"max_new_tokens": 12})
    assert unsupported(fields) == {}


# Sampling


@pytest.mark.parametrize(
    ("fields", "top_k"),
    [
        ({}, 50),
        ({"top_k": None}, 0),
        ({"top_k": 0}, 0),
        ({"top_k": 7}, 7),
        ({"temperature": None}, 50),
    ],
)
def test_absent_fields_have_transformers_defaults(fields: dict[str, Any], top_k: int) -> None:
    """The reference are the logits warpers that transformers makes of the same file."""
    options = resolve({}, {"do_sample": True, **fields}, max_new_tokens=None)
    assert (options.top_k, options.temperature, options.top_p) == (top_k, 1.0, 1.0)
    config = transformers.GenerationConfig(do_sample=True, **fields)
    warpers = transformers.LlamaForCausalLM(_smallest())._get_logits_processor(
        config, input_ids_seq_length=1
    )
    assert [
        warper.top_k for warper in warpers if isinstance(warper, transformers.TopKLogitsWarper)
    ] == [top_k] * (top_k > 0)


def _smallest() -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )


def test_a_call_that_samples_a_greedy_artifact_draws_as_before() -> None:
    options = resolve({"temperature": 0.7, "seed": 1}, {"do_sample": False}, max_new_tokens=None)
    assert (options.top_k, options.top_p) == (0, 1.0)


def test_typical_p_next_to_1_keeps_all() -> None:
    """Rounding may put the sum of all probabilities on either side of typical_p."""
    for seed in range(30):
        weights = np.random.default_rng(seed).random(50).astype(np.float32) + np.float32(0.1)
        assert typical(weights, np.nextafter(1, 0)).tolist() == list(range(50))


def test_the_rarer_filters_take_part_in_a_draw() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    for fields, left in (
        ({"typical_p": 0.2}, {1}),
        ({"epsilon_cutoff": 0.2}, {0, 1}),
        ({"eta_cutoff": 0.1}, {0, 1, 2}),
    ):
        options = resolve({}, {"do_sample": True, **fields}, max_new_tokens=None)
        sampler = Sampler(options, prompt=[], end_tokens=[], seed=3, n_logits=4)
        assert {sampler.sample(logits.copy()) for _ in range(200)} == left


# What gptx does not do


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"num_beams": 4, "num_beam_groups": 2}, {"num_beam_groups"}),
        ({"num_beams": 2, "diversity_penalty": 0.5}, {"diversity_penalty"}),
        (
            {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
            {"do_sample", "num_return_sequences"},
        ),
        ({"penalty_alpha": 0.6}, {"penalty_alpha"}),
        ({"watermarking_config": {"bias": 2.0}}, {"watermarking_config"}),
        ({"token_healing": True}, {"token_healing"}),
        ({"dola_layers": "low"}, {"dola_layers"}),
        ({"constraints": [], "force_words_ids": [[5]]}, {"constraints", "force_words_ids"}),
        ({"cache_implementation": "quantized"}, {"cache_implementation"}),
        ({"is_assistant": True}, {"is_assistant"}),
    ],
)
def test_what_gptx_does_not_do_is_named(
    fields: dict[str, Any], names: set[str], tmp_path: Path
) -> None:
    assert set(unsupported(fields)) == names
    folder = write_artifact(tmp_path / "a", generation=fields)
    with pytest.warns(GptxWarning) as warned:
        model = gptx.load(folder, threads=1)
    assert len(warned) == 1 and warned[0].filename == __file__
    assert all(name in str(warned[0].message) for name in names)
    assert "not obeyed" in generation_in_words(fields)
    assert model.generate("a", max_new_tokens=2).token_ids


def test_every_other_field_is_obeyed_or_without_effect() -> None:
    """The table has no field that transformers acts on and that gptx neither obeys nor names."""
    named = {name for name, role in FIELDS.items() if role == "not obeyed"}
    values = {
        "num_beams": 2,
        "num_beam_groups": 2,
        "diversity_penalty": 0.5,
    }
    values |= {
        "constraints": [1],
        "force_words_ids": [[1]],
        "num_return_sequences": 2,
        "penalty_alpha": 1,
    }
    values |= {
        "dola_layers": "low",
        "watermarking_config": {},
        "token_healing": True,
    }
    values |= {"is_assistant": True, "cache_implementation": "quantized"}
    values |= {"do_sample": True}
    found = set(unsupported(values)) | set(unsupported({"penalty_alpha": 1}))
    # Beams alone are obeyed, and drawing alone is
    assert found - {"do_sample"} == named == set(values) - {"do_sample", "num_beams"}


def test_the_command_names_it_in_a_line(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", generation={"token_healing": True})
    command = [sys.executable, "-m", "gptx", "run", "-m", str(folder), "a", "-n", "1", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = (
        f"gptx: {folder}: generation_config.json asks for what gptx does not do:"
        " token_healing True (new tokens for the prompt's end); text is generated without it"
    )
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


# Files that make no sense


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"suppress_tokens": "abc"}, "suppress_tokens is 'abc', expected a list of token ids"),
        ({"bad_words_ids": [[]]}, "bad_words_ids is"),
        ({"bad_words_ids": [3]}, "bad_words_ids is"),
        ({"sequence_bias": {"a": 1}}, "sequence_bias is"),
        ({"sequence_bias": [[[1], "b"]]}, "sequence_bias is"),
        ({"sequence_bias": [[[1], float("nan")]]}, "sequence_bias is"),
        ({"sequence_bias": [[[1], 10**400]]}, "sequence_bias is"),
        ({"forced_eos_token_id": -1}, "forced_eos_token_id is -1, expected a token id"),
        ({"forced_bos_token_id": True}, "forced_bos_token_id is True"),
        ({"exponential_decay_length_penalty": [1]}, "exponential_decay_length_penalty is"),
        ({"no_repeat_ngram_size": 1.5}, "no_repeat_ngram_size is 1.5"),
        ({"encoder_repetition_penalty": 0}, "encoder_repetition_penalty is 0"),
        ({"max_length": "9"}, "max_length is '9'"),
        ({"min_length": None, "max_length": [9]}, "max_length is"),
        ({"do_sample": "yes"}, "do_sample is 'yes', expected true or false"),
        ({"do_sample": True, "typical_p": 0}, "typical_p is 0"),
        ({"do_sample": True, "top_k": -1}, "top_k is -1"),
        ({"do_sample": True, "top_h": 2}, "top_h is 2"),
        ({"logit_bias": {"a": 1}}, "logit_bias is {'a': 1}"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers is"),
        ({"stop_strings": 5}, "stop_strings is 5"),
        ({"repetition_penalty": "1.2"}, "repetition_penalty is '1.2'"),
    ],
)
def test_fields_that_make_no_sense(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match="generation_config.json") as error:
        resolve({}, fields, max_new_tokens=5)
    assert says in str(error.value)
    with pytest.raises(CheckpointError) as refused:  # at export, too
        note_unsupported(fields, genai=True)
    assert says in str(refused.value) and "artifact's" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        (
            {"bad_words_ids": [[1, 5000]]},
            UsageError,
            "bad_words_ids names token 5000, outside the vocabulary",
        ),
        ({"sequence_bias": [[[10**30], 1.0]]}, UsageError, "sequence_bias names token"),
        ({"forced_eos_token_id": 5000}, UsageError, "forced_eos_token_id names token 5000"),
        (
            {"max_length": 5},
            PromptError,
            "the prompt has 5 tokens, .* max_length 5: give max_new_tokens",
        ),
        ({"suppress_tokens": list(range(400))}, UsageError, "the options forbid every token"),
    ],
)
def test_fields_that_do_not_fit_the_model(
    pair: tuple[Reference, Model], fields: dict[str, Any], error: type[Exception], says: str
) -> None:
    ours = pair[1]
    ours.generation = fields
    with pytest.raises(error, match=says):
        ours.generate([1, 2, 3, 4, 5])
    if "max_length" in fields:
        assert len(ours.generate([1, 2, 3, 4, 5], max_new_tokens=2).token_ids) == 2


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"logit_bias": {5000: 1.0}}, "logit_bias"),
        ({"sequence_bias": [([5000, 1], 1.0)]}, "sequence_bias"),
        ({"bad_words_ids": [[5000]]}, "bad_words_ids"),
        ({"forced_eos_token_id": 5000}, "forced_eos_token_id"),
        ({"forced_bos_token_id": 5000}, "forced_bos_token_id"),
    ],
)
def test_a_call_names_only_tokens_of_the_model(
    pair: tuple[Reference, Model], given: dict[str, Any], name: str
) -> None:
    ours = pair[1]
    ours.generation = {}
    with pytest.raises(UsageError, match=f"{name} names token 5000, outside the vocabulary"):
        ours.generate([1, 2], **given)
    assert ours.generate([1], max_new_tokens=2, suppress_tokens=[5000, -1]).token_ids


def test_a_number_of_json_may_have_a_fraction() -> None:
    fields = {
        "suppress_tokens": [3.0],
        "bad_words_ids": [[1.0, 2]],
        "sequence_bias": [[[1.0], 2]],
        "forced_eos_token_id": 7.0,
        "exponential_decay_length_penalty": [2.0, 1.5],
        "no_repeat_ngram_size": -2.0,
        "logit_bias": {"3": 1},
        "dry_allowed_length": 3.0,
        "dry_sequence_breakers": "x",
    }
    options = resolve({}, fields, max_new_tokens=5)
    assert options.suppress_tokens == (3,) and options.bad_words_ids == ((1, 2),)
    assert options.sequence_bias == (((1,), 2.0),) and options.forced_eos_token_id == (7,)
    assert options.exponential_decay_length_penalty == (2, 1.5)
    assert (options.no_repeat_ngram_size, options.dry_allowed_length) == (0, 3)
    assert options.logit_bias == ((3, 1.0),) and options.dry_sequence_breakers == ("x",)


def test_empty_ids_of_a_padded_vocabulary_may_be_named(tmp_path: Path) -> None:
    model = gptx.load(write_artifact(tmp_path / "a", padding=3), threads=1)
    assert model.manifest.tokens.vocab_size is not None
    empty = model.manifest.tokens.vocab_size + 1
    expected = model.generate("a", max_new_tokens=4).token_ids
    model.generation = {"bad_words_ids": [[empty], [1, empty]], "sequence_bias": [[[empty], 9.0]]}
    assert model.generate("a", max_new_tokens=4).token_ids == expected
    model.generation = {"repetition_penalty": 1.5, "encoder_repetition_penalty": 1.5}
    assert model.generate([empty, 40], max_new_tokens=4).token_ids


def test_no_processors_where_nothing_is_asked() -> None:
    options = resolve({}, {"eos_token_id": 0, "transformers_version": "4.57.0"}, max_new_tokens=5)
    assert options.rules == NO_RULES == read_rules({})[0]
    assert processors(options, prompt=[1], end_tokens=[0], max_length=6, n_logits=9) == []


# onnxruntime-genai

SHAPE = {"n_ctx": 128, "vocab_size": 300}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {},
            {
                "do_sample": False,
                "max_length": 128,
                "min_length": 0,
                "num_beams": 1,
                "top_k": 50,
                "top_p": 1.0,
            },
        ),
        ({"do_sample": True, "top_k": 0}, {"do_sample": True, "top_k": 0, "temperature": 1.0}),
        ({"do_sample": True, "top_k": None}, {"top_k": 0}),
        ({"do_sample": True, "top_k": 7.0}, {"top_k": 7}),
        # A top_k above the vocabulary's size is an error in genai.
        ({"do_sample": True, "top_k": 9999}, {"top_k": 300}),
        (
            {"do_sample": True, "temperature": 0.4, "top_p": 0.9},
            {"temperature": 0.4, "top_p": 0.9, "top_k": 50},
        ),
        ({"do_sample": True, "top_p": 0.0}, {"do_sample": False}),
        ({"do_sample": True, "temperature": 0.0}, {"do_sample": False}),
        (
            {"temperature": 0.0, "top_p": 0.0, "top_k": -1},
            {"do_sample": False, "temperature": 1.0, "top_p": 1.0},
        ),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"min_length": 7, "max_length": 60}, {"min_length": 7, "max_length": 60}),
        ({"max_length": 6000}, {"max_length": 128}),
        ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 3}),
        # genai reads it as a C int.
        ({"no_repeat_ngram_size": 10**12}, {"no_repeat_ngram_size": 2**31 - 1}),
        (
            {"num_beams": 4, "length_penalty": 0.8},
            {"num_beams": 4, "length_penalty": 0.8, "early_stopping": False},
        ),
    ],
)
def test_what_genai_is_told(fields: dict[str, Any], said: dict[str, Any]) -> None:
    told = search(fields, SHAPE, shared=True)
    assert {name: told[name] for name in said} == said


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"max_new_tokens": 5, "min_new_tokens": 2}, {"max_new_tokens", "min_new_tokens"}),
        ({"stop_strings": ["a"]}, {"stop_strings"}),
        ({"max_length": 20}, {"max_length"}),
        ({"min_p": 0.1}, set()),
        ({"do_sample": True, "min_p": 0.1, "typical_p": 0.3}, {"min_p", "typical_p"}),
        (
            {"suppress_tokens": [3], "forced_eos_token_id": 0, "min_length": 3},
            {"suppress_tokens", "forced_eos_token_id"},
        ),
        ({"num_beams": 2, "length_penalty": 2, "top_h": 0.5}, set()),
        ({"guidance_scale": 2}, {"guidance_scale"}),
        ({"repetition_penalty": 1.2, "max_length": 50, "no_repeat_ngram_size": 2}, set()),
    ],
)
def test_what_genai_cannot_be_told_is_named(
    fields: dict[str, Any], names: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(not_in_genai_config(fields)) == names
    note_unsupported(fields, genai=True)
    said = capsys.readouterr().err
    assert all(name in said for name in names)
    assert ("genai_config.json" in said) is bool(names)


def test_an_export_names_them_first(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, tmp_path / "c")
    (tmp_path / "c/generation_config.json").write_text(
        '{"token_healing": true, "do_sample": true, "min_p": 0.1}'
    )
    with pytest.raises(OutputError, match="exists"):
        export_checkpoint(tmp_path / "c", checkpoint)
    said = capsys.readouterr().err
    assert "generation_config.json asks for what gptx does not do: token_healing True" in said
    assert "genai_config.json cannot hold min_p" in said
    (tmp_path / "c/generation_config.json").write_text('{"top_k": -1, "do_sample": true}')
    with pytest.raises(CheckpointError, match="generation_config.json: top_k is -1, expected 0"):
        export_checkpoint(tmp_path / "c", tmp_path / "out")


def test_fields_of_config_json_where_there_is_no_generation_config_json(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Older checkpoints have these fields in config.json. The reference is transformers."""
    folder = shutil.copytree(checkpoint, tmp_path / "c")
    fields = {
        "do_sample": True,
        "repetition_penalty": 1.7,
        "suppress_tokens": [3],
        "max_length": 9,
        "top_p": None,
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields, "use_cache": False}))
    generation = read_side_files(folder, 304).generation
    assert "repetition_penalty" not in generation  # the file is there
    (folder / "generation_config.json").unlink()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder
    ).generation_config.to_diff_dict()
    ours = read_side_files(folder, 304).generation
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    assert ours == {**ids, **{name: value for name, value in fields.items() if value is not None}}
    assert {name: theirs[name] for name in ours} == ours


def test_a_top_k_of_null_stays_off(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "c")
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "top_k": null, "top_p": null}'
    )
    generation = read_side_files(folder, 304).generation
    assert generation["top_k"] == 0 and "top_p" not in generation
    assert resolve({}, generation, max_new_tokens=5).top_k == 0


def test_genai_config_json_holds_the_search(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": true, "top_k": 0, "num_beams": 3}'
    )
    shape = {**SHAPE, "head_dim": 8, "n_embd": 16, "n_head": 2, "n_kv_head": 2, "n_layer": 1}
    write_genai_config(tmp_path, shape, {"eos": [0], "bos": None, "pad": None}, shared=True)
    told = json.loads((tmp_path / "genai_config.json").read_text())["search"]
    assert told == search({"do_sample": True, "top_k": 0, "num_beams": 3}, SHAPE, shared=True)
