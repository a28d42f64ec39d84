"""Load an fp32 artifact's weights into a GPT module. Weights have their parameters' names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from gpt_export.graph.stored_weights import read_graph
from gptx.artifact.layout import GRAPH
from gptx.errors import ArtifactError
from gptx_models.checkpoints.check_weights import check_finite
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT


def load_gpt(artifact: Path, config: GPTConfig) -> GPT:
    """The module that the artifact was exported from, in fp32 and eval mode.

    Raises ArtifactError, which names all missing weights, or the first one that has a wrong shape
    or holds NaN or infinite values.
    """
    graph = read_graph(artifact / GRAPH).graph
    stored = graph.initializers
    transposed = {
        value.name
        for node in graph
        if node.op_type == "MatMul" and (value := node.inputs[1]) is not None
    }
    with torch.device("meta"):  # shapes only: initial values would be discarded
        gpt = GPT(config)
    missing = [name for name, _ in gpt.named_parameters() if name not in stored]
    if missing:
        raise ArtifactError(
            f"{artifact / GRAPH} lacks the weights {', '.join(missing)}:"
            " it was not written by gptx export"
        )
    for name, parameter in list(gpt.named_parameters()):
        value = stored[name].const_value
        assert value is not None
        array = value.numpy()
        array = array.T if name in transposed else array
        if array.shape != parameter.shape:
            raise ArtifactError(
                f"{artifact / GRAPH}: {name} is {list(array.shape)}, and the model's configuration"
                f" has {list(parameter.shape)}: export the artifact again"
            )
        weight = torch.from_numpy(np.array(array, np.float32, order="C"))
        check_finite(weight, name, str(artifact), ArtifactError)
        _put(gpt, name, nn.Parameter(weight, requires_grad=False))
    for name, buffer in position_tables(config).items():
        _put(gpt, name, buffer)
    if config.head_is_embedding:
        gpt.head.weight = gpt.wte.weight
    return gpt.eval()


def position_tables(config: GPTConfig) -> dict[str, torch.Tensor]:
    """The module's buffers by name: sinusoidal positions, or cosines and sines of rotary ones."""
    return dict(GPT(_thin(config)).named_buffers()) if config.position != "learned" else {}


def _thin(config: GPTConfig) -> GPTConfig:
    """A model of one layer and one token with the same position tables."""
    import dataclasses

    return dataclasses.replace(
        config, n_layer=1, vocab_size=1, attention=config.attention_of(0), window=None
    )


def _put(gpt: GPT, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = gpt.get_submodule(owner)
    if isinstance(tensor, nn.Parameter):
        setattr(module, leaf, tensor)
    else:
        module._buffers[leaf] = tensor
