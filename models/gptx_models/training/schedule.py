"""The learning rate of a step: warm-up, then what the recipe's schedule says."""

from __future__ import annotations

import math

from gptx_models.training.recipe import Recipe


def learning_rate(step: int, done: float, recipe: Recipe) -> float:
    """`step` counts from 0; `done` is the share of the run that is over, by steps or by time.

    cosine: from learning_rate to `floor` of it over the whole run (Loshchilov and Hutter 2017, as GPT-3 uses it).
    wsd: constant, then a straight line to `floor` in the last `decay` share of the run (warm-up, stable, decay: Hu et
    al. 2024), so that a run can be made longer without having been planned so. constant: no decay.
    """
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = min(done, 1.0)
    share = 1.0  # of the way from learning_rate down to the floor that is still ahead
    if recipe.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * done))
    elif recipe.schedule == "wsd":
        share = min(1.0, (1 - done) / recipe.decay) if recipe.decay else 1.0
    return recipe.learning_rate * (recipe.floor + (1 - recipe.floor) * share)
