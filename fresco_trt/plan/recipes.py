"""Quantisation recipes as values: what a precision turns weights and activations into.

Numbers only, so that a combination that cannot be built is refused while planning. Which layers a
model keeps out of all this is a fact of the model (``ModelFacts.high_precision``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from fresco_trt.errors import IncompatibleOptions

Codes = Literal["int8", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the linear layers of a model are quantised; symmetric.

    ``top`` is the largest magnitude of a code (127; 448 for E4M3) and ``code_bytes`` what one
    takes. ``channels``: a weight has one scale for every output channel, else one alone.
    ``tokens``: so have the inputs for every token, by its own largest magnitude in each call, else
    one alone for all that were measured; only engines that torch makes have it. With
    ``smooth`` the difficulty of activations is moved into the weights first (SmoothQuant, arXiv
    2211.10438): each input channel is divided by ``max|x|^a / max|w|^(1-a)`` with a = 1/2, and
    its weights multiplied. With ``attention`` the two products of attention are of codes too:
    query, key and value after the rotary embedding have one scale each, and what softmax gives has
    ``1/top``, because it is never over 1. Only engines that are built from graphs have it.
    """

    name: str
    precision: Codes
    top: float
    channels: bool
    tokens: bool = False
    smooth: bool = False
    attention: bool = False
    code_bytes: int = 1


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        # With every layer of its blocks quantised the demo's balanced plan at three stages keeps a
        # mean SSIM of 0.97 with SmoothQuant and of 0.94 without: a few channels reach far, and the
        # more prompts measure them, the further.
        Recipe(name="int8-smooth", precision="int8", top=127.0, channels=True, smooth=True),
        Recipe(name="int8", precision="int8", top=127.0, channels=True),
        # One scale a weight: the form in which every engine library has FP8 matrix products, and
        # the fastest. All layers but the kept ones are quantised: in a trial on an H200, at FLUX's
        # widths and from 512 tokens on, none was slower than in bfloat16.
        Recipe(name="fp8", precision="fp8", top=448.0, channels=False),
        # As fast a product, and beside it a search through every token for its largest magnitude.
        Recipe(name="fp8-rowwise", precision="fp8", top=448.0, channels=True, tokens=True),
        Recipe(name="fp8-attention", precision="fp8", top=448.0, channels=False, attention=True),
    )
}
"""Every recipe; the first of a precision is its default."""


def find_recipe(precision: str, name: str | None = None) -> Recipe | None:
    """The recipe of a precision, or None for one that quantises nothing.

    ``name`` None takes the precision's default. Raises IncompatibleOptions for a name that is
    none, or that of another precision.
    """
    known = [recipe.name for recipe in RECIPES.values() if recipe.precision == precision]
    if name is None:
        return RECIPES[known[0]] if known else None
    if name not in known:
        raise IncompatibleOptions(
            f"recipe={name} in --precision {precision}",
            expected=f"one of {', '.join(known)}" if known else "no recipe: nothing is quantised",
            fix="leave recipe out" + ("" if known else ", or pass --precision int8 or fp8"),
        )
    return RECIPES[name]


def kept_by(patterns: Iterable[str], layer: str) -> bool:
    """Whether one of the patterns ("proj_out", "*norm*.linear") keeps ``layer`` unquantised."""
    return any(fnmatchcase(layer, pattern) for pattern in patterns)
