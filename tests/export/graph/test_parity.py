"""The fp32 graph against PyTorch, for the presets and a pairwise cover of the configuration's axes.

The same text runs in one piece, token by token, in pieces, in a batch of different lengths, padded
on the left and right as other loaders pad, and greedily.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import onnxruntime
import pytest
import torch
from filelock import FileLock

import gptx
from builders.configurations import config_of, full_product, name_of, pairwise, small_presets
from builders.random_gpt import random_gpt
from gpt_export.certificate.certify import pytorch_greedy
from gpt_export.export import export_checkpoint
from gpt_export.graph.attention_forms import CacheForm, default_form
from gpt_export.graph.read_weights import load_gpt
from gptx_models.checkpoints.checkpoint import load_model, save_checkpoint
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

LIMIT = 1e-4  # random weights in fp32


@dataclass(frozen=True)
class Exported:
    gpt: GPT
    folder: Path
    form: CacheForm

    def logits(self, tokens: list[int]) -> np.ndarray:
        """PyTorch's logits, (length, vocab_size)."""
        with torch.no_grad():
            return self.gpt(torch.tensor([tokens]))[0].numpy()


def exported(config: GPTConfig, form: CacheForm, folder: Path) -> Exported:
    save_checkpoint(
        random_gpt(config),
        folder / "checkpoint",
        tokenizer_files=None,
        source={"format": "test"},
        generation=None,
    )
    export_checkpoint(folder / "checkpoint", folder / "artifact", cache=form)
    return Exported(load_model(folder / "checkpoint"), folder / "artifact", form)


CASES = {name: (config, default_form(config)[0]) for name, config in small_presets().items()}
CASES |= {name_of(choice): (config_of(choice), choice["cache"]) for choice in pairwise()}
# The pairwise cover begins with the choices of the most pairs: these few hold every single value.
DEFAULT = list(CASES)[: len(small_presets()) + 6]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in DEFAULT else pytest.mark.wide) for name in CASES
    ],
    ids=str,
)
def case(request: pytest.FixtureRequest, pipeline: Path) -> Exported:
    """A case of CASES, exported once for all pytest processes."""
    config, form = CASES[request.param]
    folder = pipeline / f"parity-{list(CASES).index(request.param)}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            exported(config, form, folder)
    return Exported(load_model(folder / "checkpoint"), folder / "artifact", form)


def test_every_way_of_running_it_gives_pytorchs_logits(case: Exported) -> None:
    check_session(case)
    check_padding(case)


def test_greedy_text_is_pytorchs(case: Exported) -> None:
    check_greedy(case)


def test_the_artifact_gives_the_weights_back(case: Exported) -> None:
    """`gptx quantize` begins by reading the weights back."""
    found = load_gpt(case.folder, case.gpt.config).state_dict()
    for name, value in case.gpt.state_dict().items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("choice", full_product(), ids=name_of)
def test_full_product(choice: dict, tmp_path: Path) -> None:
    one = exported(config_of(choice), choice["cache"], tmp_path)
    check_session(one)
    check_padding(one)
    check_greedy(one)


def test_what_a_configuration_can_choose_is_covered() -> None:
    """A new value or switch of GPTConfig must be added to the default suite."""
    covered = [CASES[name][0] for name in DEFAULT]
    for name, hint in get_type_hints(GPTConfig).items():
        kinds = [hint, *get_args(hint)]
        choices = {
            choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)
        }
        choices |= {True, False} if hint is bool else set()
        assert choices <= {getattr(config, name) for config in covered}, name
    assert {CASES[name][1] for name in DEFAULT} == set(get_args(CacheForm))


def texts(vocab_size: int, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


def check_session(one: Exported) -> None:
    with gptx.load(one.folder, threads=1) as model:
        (text,) = texts(model.manifest.model.vocab_size, 40)
        expected = one.logits(text)
        with model.session() as session:
            close(session.feed([text], all_logits=True)[0], expected, "at once")
        with model.session() as session:
            steps = [session.feed([[token]])[0] for token in text]
            close(np.stack(steps), expected, "a token at a time")
        with model.session() as session:
            pieces = [
                session.feed([piece], all_logits=True)[0]
                for piece in (text[:17], text[17:18], text[18:])
            ]
            close(np.concatenate(pieces), expected, "in pieces")
            session.rewind([9])
            close(session.feed([text[9:]], all_logits=True)[0], expected[9:], "after a rewind")
        rows = texts(model.manifest.model.vocab_size, 5, 21, 11)
        with model.session(3) as session:
            session.feed([row[:-3] for row in rows])
            for step in (-3, -2, -1):
                got = session.feed([[row[step]] for row in rows])
                for logits, row in zip(got, rows):
                    close(logits, one.logits(row)[step], "in a batch")


def check_padding(one: Exported) -> None:
    """Plain ONNX Runtime: two rows padded to one length, then one more token each."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(
        one.folder / "onnx" / "model.onnx", options, ["CPUExecutionProvider"]
    )
    config = one.gpt.config
    long, short = texts(config.vocab_size, 13, 8)
    gap = len(long) - len(short)
    names = [value.name for value in session.get_inputs() if value.name.startswith("past")]
    length = 0 if one.form == "growing" else 16
    past = {
        name: np.zeros((2, config.n_kv_head, length, config.head_dim), np.float32) for name in names
    }
    for side in ("right",) if one.form == "scatter" else ("right", "left"):
        pad = (0, gap) if side == "right" else (gap, 0)
        mask = np.stack([np.ones(12, np.int64), np.pad(np.ones(len(short) - 1, np.int64), pad)])
        ids = np.stack([long[:-1], np.pad(short[:-1], pad)])
        positions = (
            np.maximum(mask.cumsum(1) - 1, 0)
            if side == "left"
            else np.arange(12)[None].repeat(2, 0)
        )
        first = session.run(
            None, {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        )
        real = slice(0, len(short) - 1) if side == "right" else slice(gap, None)
        close(first[0][0], one.logits(long)[:-1], f"padded {side}, the long row")
        close(first[0][1][real], one.logits(short)[:-1], f"padded {side}, the short row")
        if side == "right" and one.form != "growing":
            mask = np.stack([np.ones(13, np.int64), np.pad(np.ones(len(short), np.int64), pad)])
        else:  # the new token stands behind the padding
            mask = np.concatenate([mask, np.ones((2, 1), np.int64)], 1)
        feeds = {
            "input_ids": np.array([long[-1:], short[-1:]]),
            "attention_mask": mask,
            "position_ids": np.array([[len(long) - 1], [len(short) - 1]]),
            **dict(zip(names, first[1:])),
        }
        (logits, *_) = session.run(None, feeds)
        close(logits[0, 0], one.logits(long)[-1], f"padded {side}, the long row's next token")
        close(logits[1, 0], one.logits(short)[-1], f"padded {side}, the short row's next token")


def check_greedy(one: Exported) -> None:
    with gptx.load(one.folder, threads=1) as model:
        (prompt,) = texts(model.manifest.model.vocab_size, 7)
        completion = model.generate(prompt, max_new_tokens=40, temperature=0, repetition_penalty=1)
        assert completion.token_ids == pytorch_greedy(one.gpt, prompt, 40)


def close(got: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert np.isfinite(got).all(), what
    assert np.abs(got - expected).max() <= LIMIT, what
