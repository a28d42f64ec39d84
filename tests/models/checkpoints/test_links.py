"""Artifacts and checkpoints whose files are links.

Every verb reads them, and none follows a link to a file outside the folder.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import gptx
from builders.hub_cache import as_in_the_cache, with_hard_links
from gpt_export.graph.stored_weights import read_graph, read_proto
from gpt_export.quantization.quantize import quantize_artifact
from gptx.artifact.folders import is_hub_blob, lies_inside
from gptx.artifact.layout import GRAPH
from gptx.compile import compile_artifact
from gptx.errors import ArtifactError
from gptx.verify import verify
from gptx_models.checkpoints.checkpoint import load_model
from gptx_models.importers import import_checkpoint


@pytest.fixture(scope="module", params=["the hub's cache", "hard links"])
def linked(
    request: pytest.FixtureRequest,
    checkpoint: Path,
    fp32: Path,
    tmp_path_factory: pytest.TempPathFactory,
):
    """(checkpoint, artifact) made of links."""
    place = tmp_path_factory.mktemp("linked à part")
    if request.param == "hard links":  # to copies: onnx refuses to read a file with two links
        copies = [shutil.copytree(one, place / one.name) for one in (checkpoint, fp32)]
        return tuple(with_hard_links(one, place / f"{one.name}-linked") for one in copies)
    return as_in_the_cache(checkpoint, place / "a"), as_in_the_cache(fp32, place / "b")


def test_checkpoints(linked: tuple[Path, Path], tmp_path: Path) -> None:
    source = linked[0]
    import_checkpoint(str(source), tmp_path / "imported")
    for name, weight in load_model(source).state_dict().items():
        assert weight.equal(load_model(tmp_path / "imported").state_dict()[name])


def test_artifacts(linked: tuple[Path, Path], tmp_path: Path) -> None:
    source = linked[1]
    with gptx.load(source, threads=1) as model:
        assert model.generate("the cat", max_new_tokens=3).token_ids
    assert verify(source).passed
    compile_artifact(source, tmp_path / "compiled")
    quantize_artifact(source, tmp_path / "fp16", to="fp16", accept=True)


def test_a_whole_graph_in_memory_is_the_same(linked: tuple[Path, Path], fp32: Path) -> None:
    there = {tensor.name: tensor for tensor in read_proto(linked[1] / GRAPH).graph.initializer}
    for name, value in read_graph(fp32 / GRAPH).graph.initializers.items():
        assert value.const_value is not None and there[name].raw_data == value.const_value.tobytes()
        assert not there[name].external_data


def test_links_that_lead_outside(fp32: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(fp32, tmp_path / "artifact"))
    data = folder / "onnx/model.onnx_data"
    data.rename(tmp_path / "elsewhere")
    for target in (tmp_path / "elsewhere", Path("/dev/zero")):
        data.unlink(missing_ok=True)
        data.symlink_to(target)
        for read in (read_graph, read_proto):
            with pytest.raises(ArtifactError, match="model.onnx_data, which is no file beside it"):
                read(folder / GRAPH)
    data.unlink()
    data.write_bytes((tmp_path / "elsewhere").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="copy the artifact again"):
        read_graph(folder / GRAPH)


def test_what_is_a_blob_of_the_cache(fp32: Path, tmp_path: Path) -> None:
    snapshot = as_in_the_cache(fp32, tmp_path)
    config, data = snapshot / "config.json", snapshot / "onnx/model.onnx_data"
    blobs = snapshot.parents[1] / "blobs"
    assert is_hub_blob(config) and is_hub_blob(data) and lies_inside(data, snapshot)
    (tmp_path / "model").symlink_to(snapshot)  # the folder's own name may be a link too
    assert is_hub_blob(tmp_path / "model/onnx/model.onnx_data")
    # the blob itself is no link from a snapshot
    assert not is_hub_blob(blobs / os.readlink(config).rpartition("/")[2])
    outside = tmp_path / "secret"
    outside.write_text("{}")
    for name, target in (("straight", outside), ("of a blob", blobs / "00")):
        (snapshot / name).symlink_to(target)
    (blobs / "00").symlink_to(outside)
    (snapshot / "nowhere").symlink_to(blobs / "11")
    (snapshot / "a folder").symlink_to(blobs)
    for name in ("straight", "of a blob", "nowhere", "a folder"):
        assert not is_hub_blob(snapshot / name) and not lies_inside(snapshot / name, snapshot)
    (snapshot / "inner.json").symlink_to("config.json")  # a link of a link that ends in a blob
    assert is_hub_blob(snapshot / "inner.json")
