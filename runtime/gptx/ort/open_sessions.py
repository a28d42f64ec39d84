"""Choose which of an artifact's graphs to open on a device, and open them.

A graph that was compiled for this machine is opened in place of the artifact's own. If it cannot be
used, a note says why, and the artifact's own graph is opened.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptx.artifact.manifest import Manifest
from gptx.artifact.native_form import why_no_step_graph
from gptx.errors import ArtifactError, ProviderError, UsageError
from gptx.ort import compiled, native
from gptx.ort.cuda import open_on_cuda
from gptx.ort.device import CPU, CUDA, tries_cuda
from gptx.ort.library import first_line, library_folder, onnxruntime
from gptx.ort.sessions import open_native, open_on_cpu
from gptx.progress import note
from gptx.system.cpu import cpu_cores
from gptx.system.huge_pages import HugePages
from gptx.system.trim_memory import trim_memory

# No thread may unmap a file during trim_memory. ORT unmaps files while it opens a graph, so one
# graph is opened at a time. ORT also unmaps a file when it frees a session, so _register keeps all
# sessions alive during trim_memory.
_opening = threading.Lock()
_alive: weakref.WeakSet[Any] = weakref.WeakSet()
_noted: set[str] = set()  # notes of _note_once
LARGE = 100_000_000  # bytes of an artifact above which a lower peak of memory is worth 10 ms


@dataclass(frozen=True)
class OpenedSessions:
    """InferenceSessions of an artifact, and the files that they were opened from."""

    session: Any
    provider: str
    file: Path
    huge_pages: HugePages
    decode: Any | None = None  # a second session, for runs of a single row
    decode_file: Path | None = None
    kernels: str | None = None  # the native kernels of `session`, if it is the step graph's
    packed: bool = False  # its weights were packed before, by gptx compile


def open_sessions(
    manifest: Manifest,
    device: str,
    threads: int | None,
    *,
    adjust_memory: bool,
    map_weights: bool = False,
) -> OpenedSessions:
    """Open an artifact's graphs. device: "cpu", "cuda" or "auto" (CUDA if it works, else CPU).

    Raises ProviderError if the device cannot be used, ArtifactError if a graph cannot be opened,
    UsageError if weights are to be mapped that are not.
    """
    if manifest.native_only and (reason := _why_not_native(manifest, device)):
        raise ProviderError(f"{manifest.path} runs on gptx's native operators only: {reason}")
    tries = tries_cuda(device) and not manifest.native_only
    with _opening:
        opened = _open_on_cuda(manifest, device, threads) if tries else None
        opened = opened or _open_on_cpu(manifest, threads, adjust_memory, map_weights)
    if map_weights and not opened.packed:
        raise UsageError(
            f"map_weights: {manifest.path} runs without packed weights here: gptx compile writes"
            " them, for native operators"
        )
    return opened


def runs_step(manifest: Manifest) -> bool:
    """True if the artifact has a step graph, and native operators run it on this machine's CPU."""
    return manifest.step is not None and _why_not_native(manifest, "cpu") is None


def usable_step(manifest: Manifest) -> Path | None:
    """The artifact's step graph if native operators run it here, else None.

    Raises UsageError if GPTX_KERNELS names no kernels of this processor, ProviderError if the
    artifact has no other graph.
    """
    if manifest.native_only and (reason := _why_not_native(manifest, "cpu")):
        raise ProviderError(f"{manifest.path} runs on gptx's native operators only: {reason}")
    if manifest.step is None or manifest.kernel_order != native.KERNEL_ORDER:
        return None
    with _opening:
        return manifest.step if native.choose_kernels(1) else None


def pack_step_graph(step: Path, out: Path) -> None:
    """Write the weights of a step graph to `out`, packed for native operators.

    Raises ArtifactError if ONNX Runtime cannot open the graph, or `out` cannot be written.
    """
    with _opening:
        native.choose_kernels(cpu_cores())
        try:
            with native.packed_weights(out, native.PackedUse.WRITE):
                open_native(step)
        except (ProviderError, ArtifactError):
            raise
        except Exception as error:  # ORT's; its classes have no common base
            raise _cannot_open(step, error) from error


def _why_not_native(manifest: Manifest, device: str) -> str | None:
    """Why native operators cannot run an artifact that has no other graph; None if they can."""
    if device == "cuda":
        return "they run on a CPU, not on CUDA"
    if manifest.kernel_order != native.KERNEL_ORDER:
        return (
            f"it is for those of order {manifest.kernel_order}, and this gptx has order"
            f" {native.KERNEL_ORDER}"
        )
    if native.available():
        return None
    if reason := native.why_no_library():
        return f"{reason}; `gptx doctor` says more"
    return f"{native.VARIABLE} is none"


def _open_on_cuda(manifest: Manifest, device: str, threads: int | None) -> OpenedSessions | None:
    """The artifact's graph on CUDA. None if CUDA cannot be used and the device is "auto"."""
    file = manifest.cuda or manifest.graph
    try:
        session = open_on_cuda(file, threads, capture=manifest.cuda is not None)
    except ProviderError as error:
        if device == "cuda":
            raise
        note(f"on the CPU: {error}")
        return None
    except Exception as error:  # ORT's; its classes have no common base
        raise _cannot_open(file, error) from error
    if manifest.precision == "fp16" and manifest.cache == "shared" and manifest.cuda is None:
        note(
            f"{manifest.path} lacks the graph for CUDA with faster attention: "
            "quantize again with gptx quantize --to fp16, which now writes that graph"
        )
    return OpenedSessions(session, CUDA, file, HugePages(enabled=False))


def _open_on_cpu(
    manifest: Manifest, threads: int | None, adjust_memory: bool, map_weights: bool
) -> OpenedSessions:
    huge_pages = HugePages(enabled=adjust_memory)
    if adjust_memory and sum(facts.size for facts in manifest.files.values()) > LARGE:
        # So that memory that imports and the tokenizer no longer need does not add to the peak.
        trim_memory(library_folder())
    if step := _open_step(manifest, threads, adjust_memory, map_weights):
        _register(manifest, step.session, adjust_memory)
        return step
    fits = _compiled_fits(manifest)
    # The decode graph comes first: ORT needs extra memory to rearrange its weights, and that memory
    # is free again when the main graph is opened.
    decode, decode_file = _open_decode(manifest, fits, threads, adjust_memory)
    session, file = _open_main(manifest, fits, threads, adjust_memory)
    huge_pages.end()
    return OpenedSessions(session, CPU, file, huge_pages, decode, decode_file)


def _open_step(
    manifest: Manifest, threads: int | None, adjust_memory: bool, map_weights: bool
) -> OpenedSessions | None:
    """The session of the step graph; None if the artifact or this machine has none.

    Where this machine has native operators, a note says why they are not used.
    """
    if manifest.step is None:
        if native.available() and why_no_step_graph(manifest) is None:
            _note_once(
                f"{manifest.path} runs on ONNX Runtime's operators:"
                f" gptx upgrade {manifest.path} adds the graph of native operators"
            )
        return None
    if manifest.kernel_order != native.KERNEL_ORDER:
        if native.available():
            _note_once(
                f"{manifest.step} is not used: it is for native operators of order"
                f" {manifest.kernel_order}, and this gptx has order {native.KERNEL_ORDER};"
                f" {manifest.path} runs on ONNX Runtime's operators"
            )
        return None
    kernels = native.choose_kernels(threads or cpu_cores(), huge_pages=adjust_memory)
    if kernels is None:
        return None
    packed = _open_packed(manifest, manifest.step, map_weights)
    try:
        session = packed or open_native(manifest.step)
    except ProviderError:
        raise
    except Exception as error:  # ORT's; its classes have no common base
        raise _cannot_open(manifest.step, error) from error
    # The kernels hold the weights in huge pages of their own.
    return OpenedSessions(
        session,
        CPU,
        manifest.step,
        HugePages(enabled=False),
        kernels=kernels,
        packed=packed is not None,
    )


def _open_packed(manifest: Manifest, step: Path, map_weights: bool) -> Any | None:
    """The session of the step graph with packed weights of the artifact.

    None if it has none, or if they cannot be used (a note says so).
    """
    if not compiled.has_packed(manifest):
        return None
    reason = compiled.packed_misfit(manifest)
    if reason is None:
        use = native.PackedUse.MAP if map_weights else native.PackedUse.COPY
        try:
            with native.packed_weights(manifest.path / compiled.PACKED, use):
                return open_native(step)
        except ProviderError:
            raise
        except ArtifactError as error:
            reason = str(error)
        except Exception as error:  # ORT's; its classes have no common base
            reason = f"ONNX Runtime cannot open the step graph with it: {first_line(error)}"
    note(f"{manifest.path / compiled.PACKED} is not used: {reason}; the weights are packed anew")
    return None


def _open_main(
    manifest: Manifest, fits: bool, threads: int | None, adjust_memory: bool
) -> tuple[Any, Path]:
    try:
        opened = _open_best(manifest, compiled.GRAPH if fits else None, manifest.graph, threads)
    except ProviderError:
        raise
    except Exception as error:  # ORT's; its classes have no common base
        raise _cannot_open(manifest.graph, error) from error
    _register(manifest, opened[0], adjust_memory)
    return opened


def _open_decode(
    manifest: Manifest, fits: bool, threads: int | None, adjust_memory: bool
) -> tuple[Any, Path] | tuple[None, None]:
    """The session of the artifact's decode graph, and its file.

    (None, None) if there is none, or if it cannot be opened (a note says so).
    """
    file = manifest.decode
    if file is None:
        return None, None
    try:
        opened = _open_best(manifest, compiled.DECODE if fits else None, file, threads)
    except ProviderError:
        raise
    except Exception as error:  # ORT's; its classes have no common base
        note(f"{file} is not used: {first_line(error)}; single rows run as all others do")
        return None, None
    _register(manifest, opened[0], adjust_memory)
    return opened


def _open_best(
    manifest: Manifest, compiled_name: str | None, portable: Path, threads: int | None
) -> tuple[Any, Path]:
    """The session of the compiled graph, else of the portable one, and its file.

    Raises ONNX Runtime's own error if the portable graph cannot be opened.
    """
    if compiled_name is not None:
        session = _open_compiled(manifest, compiled_name, threads)
        if session is not None:
            return session, manifest.path / compiled_name
    return open_on_cpu(portable, threads), portable


def _compiled_fits(manifest: Manifest) -> bool:
    """True if the artifact has compiled graphs, and they were made for this machine."""
    if not compiled.has_graphs(manifest):
        return False
    reason = compiled.misfit(manifest)
    if reason is not None:
        _not_used(manifest, compiled.GRAPH, reason)
    return reason is None


def _open_compiled(manifest: Manifest, name: str, threads: int | None) -> Any | None:
    """The session of a compiled graph; None if it cannot be opened (a note says so)."""
    try:
        return open_on_cpu(manifest.path / name, threads)
    except ProviderError:
        raise
    except Exception as error:  # ORT's; its classes have no common base
        _not_used(manifest, name, f"ONNX Runtime cannot open it: {first_line(error)}")
        return None


def _note_once(text: str) -> None:
    """Print a note, once in a process: a program may load an artifact many times."""
    if text not in _noted:
        _noted.add(text)
        note(text)


def _not_used(manifest: Manifest, name: str, reason: str) -> None:
    note(f"{manifest.path / name} is not used: {reason}; the portable graph is loaded")


def _cannot_open(file: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{file}: ONNX Runtime {onnxruntime().__version__} cannot open it: {first_line(error)}"
    )


def _register(manifest: Manifest, session: Any, adjust_memory: bool) -> None:
    """Remember an opened session, and return the memory that was needed only to open it."""
    _alive.add(session)
    if adjust_memory:
        sessions = list(_alive)  # keeps all sessions alive: freeing one would unmap its file
        trim_memory(manifest.path, library_folder())
        del sessions
