"""torch.compile for a recipe that asks for it, where the machine has a C++ compiler."""

from __future__ import annotations

from torch import compile as torch_compile
from torch import nn

from gptx.progress import note
from gptx_models.training.recipe import Recipe


def compiled(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model after torch.compile, if the recipe asks for it.

    Without a C++ compiler on the machine: the model itself, with a note to the user.
    """
    if not recipe.compile:
        return model
    if not has_compiler():
        note("torch.compile is left out: it needs a C++ compiler, and there is none (install g++)")
        return model
    return torch_compile(model)  # type: ignore[return-value]


def has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return False
    return True
