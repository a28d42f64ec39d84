"""GGUF's metadata and file format.

What llama.cpp obeys is obeyed. Anything else is an error of one sentence that names the key.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from builders.raw_gguf import (
    ARRAY,
    BOOL,
    F16,
    F32,
    FLOAT,
    INT32,
    INT64,
    STRING,
    UINT32,
    UINT64,
    Gguf,
    Key,
    llama,
)
from gptx.errors import CheckpointError
from gptx_models.checkpoints.checkpoint import load_config, load_model
from gptx_models.importers import import_checkpoint

transformers = pytest.importorskip("transformers")  # the independent reference

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32]])
SHAPE = dict(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)


def model(**changes: Any) -> Any:
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SHAPE, **changes})).eval()
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def plain() -> Gguf:
    return llama(model())


def check(file: Gguf, reference: Any, folder: Path, *, within: float = 1e-4) -> None:
    import_checkpoint(str(file.write(folder / "a.gguf")), folder / "out", force=True)
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(folder / "out")(IDS), reference(IDS).logits, atol=within, rtol=0
        )


def refused(file: Gguf, says: str, folder: Path) -> None:
    path = file.write(folder / "a.gguf")
    with pytest.raises(CheckpointError, match=says) as caught:
        import_checkpoint(str(path), folder / "out")
    said = str(caught.value)
    assert (
        str(path) in said and "\n" not in said and len(said) < 600 and not (folder / "out").exists()
    )


# --- obeyed ---------------------------------------------------------------------------------------

LINEAR = {"rope_type": "linear", "factor": 4.0}
SCALED: list[tuple[dict[str, Key | None], dict[str, Any]]] = [
    ({"rope__scaling__type": (STRING, "linear"), "rope__scaling__factor": (FLOAT, 4.0)}, LINEAR),
    # without a type it is linear, as in llama.cpp
    ({"rope__scaling__factor": (FLOAT, 4.0)}, LINEAR),
    # the factor's old name
    ({"rope__scale_linear": (FLOAT, 4.0)}, LINEAR),
    ({"rope__scaling__factor": (FLOAT, 4.0), "rope__scale_linear": (FLOAT, 2.0)}, LINEAR),
    # with the type none the factor is ignored
    ({"rope__scaling__type": (STRING, "none"), "rope__scaling__factor": (FLOAT, 4.0)}, {}),
    ({"rope__scaling__type": (STRING, "linear"), "rope__scaling__factor": (FLOAT, 0.0)}, {}),
    (
        {
            "rope__scaling__attn_factor": (FLOAT, 1.0),
            "rope__scaling__original_context_length": (UINT32, 8),
        },
        {},
    ),
]


@pytest.mark.parametrize(("keys", "scaling"), SCALED)
def test_rope_scaling(
    keys: dict[str, Key | None], scaling: dict[str, Any], plain: Gguf, tmp_path: Path
) -> None:
    named = {f"llama__{name}": value for name, value in keys.items()}
    check(plain.with_keys(**named), model(rope_scaling=scaling or None), tmp_path)


@pytest.mark.parametrize(
    "keys",
    [
        {"llama__attention__head_count_kv": (ARRAY, (INT32, [2, 2]))},
        {"llama__feed_forward_length": (ARRAY, (UINT32, [64, 64]))},
        {"llama__rope__freq_base": None, "llama__rope__dimension_count": None},
        {"llama__context_length": (UINT64, 64), "llama__block_count": (INT64, 2)},
        {
            "llama__attention__causal": (BOOL, True),
            "llama__expert_count": (UINT32, 0),
            "llama__logit_scale": (FLOAT, 1.0),
        },
        {
            "llama__vocab_size": (UINT32, 7),
            "llama__tensor_data_layout": (STRING, "Meta AI original pth"),
        },
        {"general__name": (FLOAT, 1.0), "general__license": (ARRAY, (STRING, ["mit"]))},
        {"general__type": (STRING, "model"), "split__count": (UINT32, 1), "split__no": (UINT32, 0)},
        {"llama__attention__sliding_window": (UINT32, 64)},
    ],
)
def test_keys_that_change_nothing(keys: dict[str, Key | None], plain: Gguf, tmp_path: Path) -> None:
    check(plain.with_keys(**keys), model(), tmp_path)


@pytest.mark.parametrize(("alignment", "version"), [(1, 3), (64, 3), (4096, 2)])
def test_alignment_and_version(alignment: int, version: int, plain: Gguf, tmp_path: Path) -> None:
    file = plain.with_keys(general__alignment=(UINT32, alignment))
    check(replace(file, alignment=alignment, version=version), model(), tmp_path)


def test_a_head_that_differs_is_the_head(plain: Gguf, tmp_path: Path) -> None:
    """llama.cpp takes output.weight if there is one."""
    assert plain.tensors["output.weight"][2] != plain.tensors["token_embd.weight"][2]
    check(plain, model(), tmp_path)
    assert not load_config(tmp_path / "out").tied
    without = replace(
        plain,
        tensors={name: tensor for name, tensor in plain.tensors.items() if name != "output.weight"},
    )
    without.write(tmp_path / "tied.gguf")
    import_checkpoint(str(tmp_path / "tied.gguf"), tmp_path / "tied")
    assert load_config(tmp_path / "tied").tied


# --- refused --------------------------------------------------------------------------------------

NAN = float("nan")
REFUSED: list[tuple[dict[str, Key | None], str]] = [
    (
        {"rope__scaling__type": (STRING, "yarn")},
        "rope.scaling.type is 'yarn', expected none or linear",
    ),
    ({"rope__scaling__type": (UINT32, 1)}, "rope.scaling.type is 1"),
    (
        {"rope__scaling__factor": (FLOAT, -2.0)},
        "rope.scaling.factor is -2.0, expected a number of at least 0",
    ),
    ({"rope__scaling__factor": (FLOAT, NAN)}, "rope.scaling.factor is nan"),
    ({"rope__scaling__factor": (STRING, "2")}, "rope.scaling.factor is '2'"),
    ({"rope__scaling__attn_factor": (FLOAT, 0.8)}, "rope.scaling.attn_factor is 0.8"),
    ({"rope__scaling__yarn_ext_factor": (FLOAT, 1.0)}, "yarn_ext_factor is 1.0"),
    ({"rope__scaling__yarn_log_multiplier": (FLOAT, 0.1)}, "yarn_log_multiplier is 0.1"),
    ({"rope__freq_base": (FLOAT, NAN)}, "rope.freq_base is nan, expected a number above 0"),
    ({"rope__freq_base": (FLOAT, 0.0)}, "rope.freq_base is 0.0"),
    ({"rope__dimension_count": (UINT32, 8)}, "rope.dimension_count is 8, expected the head's 16"),
    ({"rope__dimension_sections": (ARRAY, (INT32, [1, 2]))}, "rope.dimension_sections is"),
    (
        {"attention__value_length": (UINT32, 8)},
        "attention.value_length is 8, expected the head's 16",
    ),
    ({"attention__key_length": (UINT32, 8)}, "rope.dimension_count is 16, expected the head's 8"),
    (
        {"attention__scale": (FLOAT, 0.5)},
        "attention.scale is 0.5, which gptx's GPT does not compute",
    ),
    ({"attention__causal": (BOOL, False)}, "attention.causal is False"),
    ({"attention__sliding_window": (STRING, "4")}, "attention.sliding_window is '4'"),
    (
        {"attention__sliding_window": (UINT32, 4)},
        "attention.sliding_window is 4, which llama.cpp does not compute here",
    ),
    ({"attention__sliding_window_pattern": (UINT32, 4)}, "attention.sliding_window_pattern is 4"),
    ({"attention__max_alibi_bias": (FLOAT, 8.0)}, "attention.max_alibi_bias is 8.0"),
    ({"attention__clamp_kqv": (FLOAT, 8.0)}, "attention.clamp_kqv is 8.0"),
    ({"attn_logit_softcapping": (FLOAT, 50.0)}, "attn_logit_softcapping is 50.0"),
    ({"final_logit_softcapping": (FLOAT, 30.0)}, "final_logit_softcapping is 30.0"),
    ({"logit_scale": (FLOAT, 0.5)}, "logit_scale is 0.5"),
    ({"residual_scale": (FLOAT, 0.5)}, "residual_scale is 0.5"),
    ({"embedding_scale": (FLOAT, 12.0)}, "embedding_scale is 12.0"),
    ({"use_parallel_residual": (BOOL, True)}, "use_parallel_residual is True"),
    ({"expert_count": (UINT32, 8)}, "a mixture of 8 experts"),
    (
        {"something__new": (STRING, "yes")},
        "llama.something.new is 'yes', which gptx's GPT does not compute",
    ),
    (
        {"attention__head_count_kv": (ARRAY, (UINT32, [2, 4]))},
        "attention.head_count_kv differs between layers",
    ),
    (
        {"attention__head_count_kv": (ARRAY, (UINT32, [2]))},
        "attention.head_count_kv is a list of 1, expected one value a",
    ),
    ({"attention__head_count": (ARRAY, (UINT32, []))}, "attention.head_count is a list of 0"),
    ({"attention__head_count_kv": (UINT32, 3)}, "not a multiple of n_kv_head"),
    *[
        (
            {"attention__head_count": (kind, value)},
            f"attention.head_count is {value!r}, expected a positive whole number",
        )
        for kind, value in ((UINT32, 0), (INT32, -4), (FLOAT, 4.0), (STRING, "4"), (BOOL, True))
    ],
    (
        {"attention__head_count": (UINT64, 2**63)},
        "attention.head_count is 9223372036854775808, expected at most",
    ),
    ({"attention__head_count": None}, "llama.attention.head_count is missing"),
    ({"attention__head_count_kv": (UINT32, 0)}, "attention.head_count_kv is 0"),
    ({"block_count": (UINT32, 10**7)}, "block_count is 10000000, expected at most 10,000"),
    ({"block_count": (UINT32, 3)}, "missing tensors: blk.2.attn_q.weight"),
    ({"block_count": (UINT32, 1)}, "unexpected tensors: blk.1"),
    (
        {"context_length": (UINT64, 2**63)},
        "context_length is 9223372036854775808, expected at most",
    ),
    ({"embedding_length": (UINT32, 0)}, "embedding_length is 0"),
    ({"attention__layer_norm_rms_epsilon": None}, "attention.layer_norm_rms_epsilon is missing"),
    ({"attention__layer_norm_rms_epsilon": (FLOAT, NAN)}, "layer_norm_rms_epsilon is nan"),
    ({"attention__layer_norm_rms_epsilon": (FLOAT, -1.0)}, "layer_norm_rms_epsilon is -1.0"),
]


@pytest.mark.parametrize(("keys", "says"), REFUSED)
def test_keys_that_change_what_is_computed(
    keys: dict[str, Key | None], says: str, plain: Gguf, tmp_path: Path
) -> None:
    refused(
        plain.with_keys(**{f"llama__{name}": value for name, value in keys.items()}), says, tmp_path
    )


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"general__architecture": (UINT32, 5)}, "of architecture 5"),
        ({"general__architecture": (ARRAY, (STRING, ["llama"]))}, r"of architecture \['llama'\]"),
        ({"general__architecture": None}, "of architecture None"),
        ({"general__type": (STRING, "adapter")}, "is a LoRA adapter in GGUF: merge it"),
        ({"general__type": (STRING, "mmproj")}, "general.type is 'mmproj', expected a model"),
        ({"split__count": (UINT32, 3)}, "one of 3 parts"),
        ({"split__count": (STRING, "3")}, "one of 3 parts"),
        ({"general__alignment": (UINT32, 0)}, "general.alignment is 0, expected a power of two"),
        ({"general__alignment": (UINT32, 48)}, "general.alignment is 48, expected a power of two"),
        ({"general__alignment": (STRING, "32")}, "general.alignment is of type 8, expected 4"),
        ({"general__odd": (13, 0)}, "general.odd is of type 13, which no version of GGUF has"),
        ({"general__odd": (ARRAY, (ARRAY, []))}, "general.odd is a list of lists"),
        ({"general__odd": (ARRAY, (99, []))}, "general.odd is a list of type 99"),
        ({"general__odd": (STRING, b"\xff")}, "general.odd is not UTF-8 text"),
    ],
)
def test_keys_of_the_file(
    keys: dict[str, Key | None], says: str, plain: Gguf, tmp_path: Path
) -> None:
    refused(plain.with_keys(**keys), says, tmp_path)


def test_lists_in_lists_without_end(tmp_path: Path) -> None:
    """Reading them takes no recursion."""
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 200_000
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
    with pytest.raises(CheckpointError, match="k is a list of lists"):
        import_checkpoint(str(tmp_path / "a.gguf"), tmp_path / "out")


def test_a_big_endian_file(plain: Gguf, tmp_path: Path) -> None:
    refused(replace(plain, order=">"), "is a big-endian GGUF file", tmp_path)


@pytest.mark.parametrize(
    ("version", "says"), [(1, "of version 1 of GGUF, expected 2 or 3"), (4, "of version 4 of GGUF")]
)
def test_other_versions(version: int, says: str, plain: Gguf, tmp_path: Path) -> None:
    refused(replace(plain, version=version), says, tmp_path)


@pytest.mark.parametrize("number", [4, 31, 42, 99, 2**31, 2**32 - 1])
def test_a_type_of_tensor_that_is_unknown(number: int, plain: Gguf, tmp_path: Path) -> None:
    shape, _, data = plain.tensors["blk.1.ffn_up.weight"]
    says = (
        f"blk.1.ffn_up.weight is of type {number}, which is unknown to the installed gguf package:"
        " update it"
    )
    refused(plain.with_tensor("blk.1.ffn_up.weight", shape, number, data), says, tmp_path)


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F64, gguf.GGMLQuantizationType.I32])
def test_a_type_that_is_no_weight(
    kind: gguf.GGMLQuantizationType, plain: Gguf, tmp_path: Path
) -> None:
    says = f"ffn_up.weight is of type {kind.name}, which the gguf package does not read"
    data = bytes(64 * 64 * 8)
    refused(plain.with_tensor("blk.1.ffn_up.weight", (64, 64), int(kind), data), says, tmp_path)


def test_tensors_that_are_not_what_they_say(plain: Gguf, tmp_path: Path) -> None:
    name, floats = "blk.1.ffn_up.weight", bytes(4 * 64 * 64)
    for shape, kind, data, says in (
        (
            (64, 63),
            F32,
            floats,
            r"ffn_up.weight is \[64, 63\] where the configuration says \[64, 64\]",
        ),
        (
            (64, 40),
            int(gguf.GGMLQuantizationType.Q8_0),
            floats,
            r"is \[64, 40\] in Q8_0, whose rows have a multiple of 32 weights",
        ),
        ((1, 1, 1, 1, 1), F32, floats, "has 5 dimensions, expected at most 4"),
        ((2**40, 2**40), F32, floats, "not a whole GGUF file: blk.1.ffn_up.weight ends at byte"),
        (
            (64, 64),
            F16,
            np.full((64, 64), np.inf, np.float16).tobytes(),
            r"ffn_up.weight holds inf at \[0, 0\]",
        ),
    ):
        refused(plain.with_tensor(name, shape, kind, data), says, tmp_path)
    refused(
        plain.with_tensor("token_embd.weight", (64,), F32, bytes(256)),
        "token_embd.weight is no matrix",
        tmp_path,
    )
    refused(replace(plain, twice=name), f"has the tensor {name} twice", tmp_path)
    refused(
        replace(plain, twice="llama.block_count"), "has the key llama.block_count twice", tmp_path
    )
    refused(
        replace(plain, shift=8), "begins at 8, which is no multiple of the alignment, 32", tmp_path
    )
    refused(
        replace(plain, tensors={}, alignment=1), "the tensor token_embd.weight is missing", tmp_path
    )
    refused(
        replace(plain, n_tensors=2**63),
        "not a whole GGUF file|twice|not UTF-8|dimensions",
        tmp_path,
    )
    refused(replace(plain, n_keys=2**63), "not a whole GGUF file|of type|not UTF-8|twice", tmp_path)


def test_a_place_of_a_value_that_is_no_number(plain: Gguf, tmp_path: Path) -> None:
    """The index is the file's, before the rows of Q are reordered."""
    weight = np.ones((64, 64), np.float32)
    weight[1, 5] = np.nan
    refused(plain.with_tensor("blk.0.attn_q.weight", (64, 64), F32, weight.tobytes()),
            r"blk.0.attn_q.weight holds nan at \[1, 5\]", tmp_path)  # fmt: skip


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        ([1.0] * 7 + [8.0], "are not those of Llama 3.1"),
        ([NAN] * 8, "no list of 8 positive"),
        ([-1.0] * 8, "no list of 8"),
        ([2.0] * 4, "no list of 8 positive factors"),
    ],
)
def test_factors_of_rope(factors: list[float], says: str, plain: Gguf, tmp_path: Path) -> None:
    raw = np.array(factors, np.float32).tobytes()
    refused(plain.with_tensor("rope_freqs.weight", (len(factors),), F32, raw), says, tmp_path)
    both = plain.with_tensor("rope_freqs.weight", (8,), F32, np.full(8, 2, np.float32).tobytes())
    refused(both.with_keys(llama__rope__scaling__factor=(FLOAT, 2.0)), "both scale", tmp_path)


def test_every_length_of_a_file_that_is_cut_short(plain: Gguf, tmp_path: Path) -> None:
    whole = plain.write(tmp_path / "whole.gguf").read_bytes()
    header = whole.index(b"output.weight") + 200
    for length in [*range(5, header, 7), len(whole) - 1]:
        (tmp_path / "a.gguf").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a whole GGUF file"):
            import_checkpoint(str(tmp_path / "a.gguf"), tmp_path / "out")


def test_an_adapter_beside_it_is_told(plain: Gguf, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "adapter_config.json").write_text("{}")
    import_checkpoint(str(plain.write(tmp_path / "a.gguf")), tmp_path / "out", tell=said.append)
    assert f"{tmp_path} holds an adapter too, which is not applied" in said


# --- types of tensors -----------------------------------------------------------------------------


def unpacked(kind: str, block: bytes) -> list[float]:
    """The values of one block, by the loops of ggml-quants.c (dequantize_row_q4_0, ...)."""
    d = float(np.frombuffer(block[:2], np.float16)[0])
    if kind == "Q8_0":
        return [d * q for q in np.frombuffer(block[2:], np.int8).tolist()]
    offset = kind[-1] == "1"
    m = float(np.frombuffer(block[2:4], np.float16)[0]) if offset else 0.0
    rest = block[4 if offset else 2 :]
    high = int.from_bytes(rest[:4], "little") if kind[1] == "5" else 0
    nibbles = rest[4:] if kind[1] == "5" else rest
    middle = {"Q4_0": 8, "Q5_0": 16}.get(kind, 0)
    values = [0.0] * 32
    for j in range(16):
        for at, low in ((j, nibbles[j] & 15), (j + 16, nibbles[j] >> 4)):
            values[at] = ((low | ((high >> at) & 1) << 4) - middle) * d + m
    return values


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_types_with_blocks_of_32(kind: str, plain: Gguf, tmp_path: Path) -> None:
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    raw = np.random.default_rng(0).integers(0, 256, (64 * 64 // block, size), dtype=np.uint8)
    raw[:, :4] = np.frombuffer(np.array([0.01, 0.02], np.float16).tobytes(), np.uint8)
    expected = torch.tensor(
        [value for row in raw for value in unpacked(kind, row.tobytes())]
    ).reshape(64, 64)
    path = plain.with_tensor("blk.1.ffn_down.weight", (64, 64), number, raw.tobytes()).write(
        tmp_path / "a.gguf"
    )
    import_checkpoint(str(path), tmp_path / "out")
    down = load_model(tmp_path / "out").layers[1].mlp.down.weight
    torch.testing.assert_close(down.detach(), expected, atol=1e-6, rtol=1e-6)


OTHERS = [
    name
    for name in gguf.GGMLQuantizationType.__members__
    if name[0] in "QITMN" and name not in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "Q1_0")
]


@pytest.mark.parametrize("kind", OTHERS)
def test_every_type_is_read_or_refused(kind: str, plain: Gguf, tmp_path: Path) -> None:
    """Blocks of zero bytes stand for a matrix of one value, or of a codebook's values."""
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    wide = llama(model(intermediate_size=256))
    data = bytes(64 * 256 // block * size)
    path = wide.with_tensor("blk.1.ffn_down.weight", (64, 256), number, data).write(
        tmp_path / "a.gguf"
    )
    import_checkpoint(str(path), tmp_path / "out")
    down = load_model(tmp_path / "out").layers[1].mlp.down.weight
    assert torch.isfinite(down).all() and (down.abs() < 1e-30).all()
