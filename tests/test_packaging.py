"""Packaging: the direction of imports, the wheel with its default model, and the extras."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "gptx": "runtime/gptx",
    "gptx_models": "models/gptx_models",
    "gpt_export": "gpt_export/gpt_export",
}
MAY_IMPORT = {"gptx": {"gptx"}, "gptx_models": {"gptx_models", "gptx"}, "gpt_export": {*SOURCES}}
NEVER_IN_THE_RUNTIME = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript"}


def imported(file: Path, *, at_once: bool = False) -> set[str]:
    """The top-level names of all imports in a file.

    at_once: only of those that run when the file itself is imported.
    """
    names: set[str] = set()
    tree = ast.parse(file.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", SOURCES)
def test_imports_go_one_way(package: str) -> None:
    for file in (ROOT / SOURCES[package]).rglob("*.py"):
        assert imported(file) & set(SOURCES) <= MAY_IMPORT[package], file
        if package == "gptx":
            # the engines of gptx bench import their own package when they are started
            names = imported(file, at_once="bench/engines" in file.as_posix())
            assert not names & NEVER_IN_THE_RUNTIME, file


def test_running_a_model_loads_neither_torch_nor_onnx(fp32: Path) -> None:
    code = (
        "import sys, gptx; before = set(sys.modules);"
        f"model = gptx.load({str(fp32)!r}); model.generate('the cat', max_new_tokens=2);"
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        f"{NEVER_IN_THE_RUNTIME!r}), 'onnxruntime' in before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=with_sources(), check=True
    )
    assert ran.stdout.strip() == "[] False"


def test_no_extra_brings_both_onnxruntimes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    runtimes = {
        name: [d for d in needs if d.startswith("onnxruntime")] for name, needs in extras.items()
    }
    assert not any(
        d.startswith("onnxruntime")
        for d in project["dependencies"] + extras["dev"] + extras["export"]
    )
    assert len(runtimes["cpu"]) == len(runtimes["cuda"]) == 1
    assert (
        "onnxruntime"
        not in (ROOT / "constraints.txt").read_text().replace("# ", "").split("==")[0].splitlines()
    )


def build_wheel(folder: Path, *, kernels: str) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    environment = {**os.environ, "GPTX_BUILD_KERNELS": kernels}
    command = [*pip, "wheel", "--no-deps", "-w", folder, ROOT]
    subprocess.run(command, check=True, env=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.wide
@pytest.mark.skipif(sys.platform != "linux", reason="the names of Linux")
def test_a_wheel_with_native_operators(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, kernels="require")
    assert "-py3-none-linux_" in wheel.name
    assert "gptx/ort/libgptx_kernels.so" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.wide
@pytest.mark.skipif(sys.platform != "linux", reason="the names of Linux")
def test_a_build_that_fails_ends_in_the_pure_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    wheel = build_wheel(tmp_path, kernels="")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "gptx_kernels" in name]


@pytest.mark.wide
def test_wheels_for_other_systems(tmp_path: Path) -> None:
    """The script inspects each library itself, and leaves this system's library alone."""
    for needed in ("hatchling", "lief", "ziglang"):
        pytest.importorskip(needed, exc_type=ImportError)
    here = {file: file.stat().st_mtime_ns for file in ROOT.glob("runtime/gptx/ort/*gptx_kernels.*")}
    command = [
        sys.executable,
        ROOT / ".ci" / "wheels.py",
        tmp_path,
        "none",
        "aarch64-linux-gnu.2.28",
    ]
    subprocess.run(command, check=True)
    tags = {"py3-none-any", "py3-none-manylinux_2_28_aarch64"}
    assert {wheel.stem.split("-", 2)[2] for wheel in tmp_path.iterdir()} == tags
    assert {file: file.stat().st_mtime_ns for file in here} == here


def test_the_wheel_runs_the_default_model(tmp_path: Path) -> None:
    """The wheel is built from this tree, and run without it, on this environment's packages."""
    wheel = build_wheel(tmp_path, kernels="none")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"gptx/default_model/gptx.json", "gptx/default_model/onnx/model.onnx_data"} <= set(names)
    assert {f"{package}/py.typed" for package in SOURCES} <= set(names)
    assert not [name for name in names if name.startswith(("runtime/", "models/", "tests/"))]
    venv.create(tmp_path / "venv", system_site_packages=False, with_pip=False, symlinks=True)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dependencies.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages"))
    )
    command = [tmp_path / "venv" / "bin" / "python", "-c", "from gptx.cli import main; main()"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run(
        [*command, "run", "Once upon a time", "-n", "8", "--seed", "1", "--json"],
        capture_output=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    assert str(site).encode() in ran.stdout and b'"new_tokens": 8' in ran.stdout


def test_the_default_model_is_small() -> None:
    files = [p for p in (ROOT / SOURCES["gptx"] / "default_model").rglob("*") if p.is_file()]
    assert 0 < sum(p.stat().st_size for p in files) <= 25_000_000


def with_sources() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            str(ROOT / path).rpartition("/")[0] for path in SOURCES.values()
        ),
    }
