"""The learning rate of a step: a warm-up, then the recipe's schedule."""

from __future__ import annotations

import math

from gptx_models.training.recipe import Recipe


def learning_rate(step: int, done: float, recipe: Recipe) -> float:
    """The learning rate of a step. done: the share of the run that is over, by steps or by time.

    In the first `warmup` steps (counted from 0) the rate rises in a straight line. Then:

    cosine    falls from learning_rate to `floor` times learning_rate over the whole run
              (Loshchilov and Hutter 2017; as in GPT-3)
    wsd       constant, then falls in a straight line to `floor` times learning_rate in the last
              `decay` share of the run (warm-up, stable, decay: Hu et al. 2024); the length of the
              run need not be known before the decay begins
    constant  does not fall
    """
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = min(done, 1.0)
    height = 1.0  # above the floor: 1 at learning_rate, 0 at the floor
    if recipe.schedule == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * done))
    elif recipe.schedule == "wsd":
        height = min(1.0, (1 - done) / recipe.decay) if recipe.decay else 1.0
    return recipe.learning_rate * (recipe.floor + (1 - recipe.floor) * height)
