"""A graph on disk and the weights beside it, read wherever links lead, but never from outside the artifact.

onnx and onnx_ir refuse data behind a link, hard or symbolic, and the hub's cache is made of links. Here a link is followed
where `lies_inside` says that it stays in the artifact.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from gptx.errors import ArtifactError
from gptx.folders import lies_inside


def read_graph(file: Path) -> ir.Model:
    """The graph; its weights stay on disk until they are asked for. Raises ArtifactError."""
    model = ir.load(file)
    for value in model.graph.initializers.values():
        stored = value.const_value
        if isinstance(stored, ir.ExternalTensor):
            data = _data_file(file, os.fspath(stored.location), (stored.offset or 0) + (stored.length or stored.nbytes))
            # without a base_dir onnx_ir asks nothing of the path
            value.const_value = ir.ExternalTensor(
                str(data), stored.offset, stored.length, stored.dtype, shape=stored.shape, name=stored.name or ""
            )
    return model


def read_proto(file: Path) -> onnx.ModelProto:
    """The graph with its weights in memory. Raises ArtifactError."""
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


def _data_file(graph: Path, location: str, end: int) -> Path:
    file = graph.parent / location
    if not file.is_file() or not lies_inside(file, graph.parent):
        raise ArtifactError(f"{graph} has weights in {location}, which is no file beside it: copy the artifact again")
    if file.stat().st_size < end:
        raise ArtifactError(
            f"{file} has {file.stat().st_size:,} bytes, and {graph} reads {end:,}: copy the artifact again"
        )
    return Path(os.path.realpath(file))
