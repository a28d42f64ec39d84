"""Estimate disk and memory of an export, for --dry-run and the check of free space."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_export.certificate.eval_text import MAX_TOKENS
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

GRAPH_AND_SIDE_FILES = 4_000_000  # bytes, generous
LIBRARIES = 800_000_000  # bytes of memory for PyTorch, ONNX Runtime and the activations


@dataclass(frozen=True)
class Plan:
    """What an export or a quantization takes. Bytes, except for `parameters`."""

    parameters: int
    artifact_bytes: int
    disk_bytes: int  # at the peak: the reference's logits lie on the disk beside the artifact
    memory_bytes: int


def plan_export(config: GPTConfig) -> Plan:
    """Estimate an fp32 export.

    Memory: PyTorch holds the weights and one transposed copy at a time. Later, without PyTorch's
    weights, ONNX Runtime holds the mapped file and its packed copy.
    """
    parameters = count_parameters(config)
    weights = 4 * parameters
    return Plan(
        parameters,
        artifact_bytes=weights,
        disk_bytes=weights + logits_bytes(config.vocab_size) + GRAPH_AND_SIDE_FILES,
        memory_bytes=int(2.2 * weights) + LIBRARIES,
    )


def logits_bytes(vocab_size: int) -> int:
    """Size of the reference's logits on the evaluation text: float32, at most MAX_TOKENS rows."""
    return 4 * MAX_TOKENS * vocab_size


def count_parameters(config: GPTConfig) -> int:
    """Number of parameters, tied ones once. Builds the module without allocating its weights."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in GPT(config).parameters())
