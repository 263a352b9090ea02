"""Recipes: published experiments as files, run by the same trainer as everything else.

Names are loaded on first use, so that importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchgeo_debias.recipes.plan import Plan, plan_recipe
    from torchgeo_debias.recipes.recipe import Recipe, find_recipe, list_recipes
    from torchgeo_debias.recipes.running import RecipeRun, run_recipe

__all__ = ["Plan", "Recipe", "RecipeRun", "find_recipe", "list_recipes", "plan_recipe", "run_recipe"]

_HOMES = {
    "plan": ("Plan", "plan_recipe"),
    "recipe": ("Recipe", "find_recipe", "list_recipes"),
    "running": ("RecipeRun", "run_recipe"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (the type of each name is declared above)
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
