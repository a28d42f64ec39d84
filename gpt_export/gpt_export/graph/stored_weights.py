"""Read a graph and its external weights. Links are followed only to files of the same artifact.

onnx and onnx_ir refuse weights behind a hard or symbolic link, and the hub's cache consists of
links.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from gptx.artifact.folders import lies_inside
from gptx.errors import ArtifactError, UsageError
from gptx_models.checkpoints.check_weights import check_finite


def read_graph(file: Path) -> ir.Model:
    """The graph; weights are read from the disk when they are used.

    Raises ArtifactError if a data file is missing, too short, or outside the artifact.
    """
    model = ir.load(file)
    for value in model.graph.initializers.values():
        stored = value.const_value
        if isinstance(stored, ir.ExternalTensor):
            data = _data_file(
                file,
                os.fspath(stored.location),
                (stored.offset or 0) + (stored.length or stored.nbytes),
            )
            # onnx_ir checks the path only if there is a base_dir
            value.const_value = ir.ExternalTensor(
                str(data),
                stored.offset,
                stored.length,
                stored.dtype,
                shape=stored.shape,
                name=stored.name or "",
            )
    return model


def read_proto(file: Path) -> onnx.ModelProto:
    """The graph with its weights in memory. Raises ArtifactError as read_graph does."""
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        if not uses_external_data(tensor):
            continue
        info = ExternalDataInfo(tensor)
        start, length = info.offset or 0, info.length or 0
        data = _data_file(file, info.location, start + length)
        tensor.raw_data = np.fromfile(data, np.uint8, length or -1, offset=start).tobytes()
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return model


def check_weights(model: ir.Model, where: str, *, half: bool = False) -> None:
    """Raise ArtifactError for a weight with NaN or infinite values.

    half: also raise UsageError for values beyond the range of fp16. Checked are the constants that
    MatMul, Gemm and Gather read; others, such as masks, may be infinite. where: the file, for
    messages.
    """
    nodes = [node for node in model.graph if node.op_type in ("MatMul", "Gemm", "Gather")]
    for value in {
        id(value): value for node in nodes for value in node.inputs if value is not None
    }.values():
        if value.const_value is not None and value.const_value.dtype in (
            ir.DataType.FLOAT,
            ir.DataType.FLOAT16,
        ):
            weight = torch.from_numpy(np.array(value.const_value.numpy()))
            check_finite(weight, value.name or "a weight", where, ArtifactError)
            if half:
                check_half(weight, value.name or "a weight", where)


def check_half(weight: torch.Tensor, name: str, where: str) -> None:
    """Raise UsageError for a weight that fp16 cannot hold."""
    low, high = (float(end) for end in torch.aminmax(weight))
    largest = max(-low, high)
    if largest > torch.finfo(torch.float16).max:
        raise UsageError(
            f"{where} cannot be stored in fp16, which ends at 65,504: {name} holds {largest:,.0f};"
            " int8 and int4 hold it"
        )


def _data_file(graph: Path, location: str, end: int) -> Path:
    file = graph.parent / location
    if not file.is_file() or not lies_inside(file, graph.parent):
        raise ArtifactError(
            f"{graph} has weights in {location}, which is no file beside it:"
            " copy the artifact again"
        )
    if file.stat().st_size < end:
        raise ArtifactError(
            f"{file} has {file.stat().st_size:,} bytes, and {graph} reads {end:,}:"
            " copy the artifact again"
        )
    return Path(os.path.realpath(file))
