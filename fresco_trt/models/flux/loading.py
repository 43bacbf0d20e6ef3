"""FLUX's transformer from its weights: a diffusers folder, one file in either naming, or a seed.

Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.assembly import assembled, seeded, stored
from fresco_trt.models.flux.config import (
    REPOSITORIES,
    TRANSFORMER,
    transformer_config,
)
from fresco_trt.models.flux.original import diffusers_names, is_original
from fresco_trt.models.flux.variants import check_config
from fresco_trt.models.weights import find_transformer
from fresco_trt.plan.facts import ModelFacts

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module


def load_transformer(
    weights: str | Path | None,
    facts: ModelFacts,
    *,
    dtype: torch.dtype | None = None,
    layers: tuple[int, int] | None = None,
    seed: int = 0,
) -> Module:
    """The transformer of ``facts`` in evaluation mode on the CPU, in ``dtype`` (default float32).

    ``weights`` is a diffusers pipeline folder, a transformer folder, a ``.safetensors`` file
    (diffusers' or the original naming), None for the packaged weights or the hub, or ``"random"``:
    real dimensions, seeded values, optionally only ``layers`` = (double, single) blocks deep.
    Raises WeightsNotFound, UnsupportedWeights for such as are packed, pickled or not finite, and
    IncompatibleOptions if they are another model's.
    """
    import torch

    if weights == "random":
        return random_transformer(facts, dtype=dtype, layers=layers, seed=seed)
    if layers is not None:
        raise IncompatibleOptions(
            f"a depth of {layers[0]}+{layers[1]} blocks with stored weights",
            expected="a depth override with random weights only",
            fix="pass --weights random, or leave the depth to the model",
        )
    path = None if weights is None else Path(weights)
    source = find_transformer(path, model=facts.name, repository=REPOSITORIES.get(facts.name))
    if source.is_dir():
        check_config(source, facts)
    config = transformer_config(facts)
    return assembled(source, TRANSFORMER, config, dtype or torch.float32, _names)


def transformer_from_folder(folder: Path) -> Module:
    """The transformer of a folder as it is stored: its own dimensions, its own dtype, on the CPU.

    For engines, whose folder a build has checked. Raises WeightsNotFound or IncompatibleOptions.
    """
    return stored(folder, TRANSFORMER)


def random_transformer(
    facts: ModelFacts,
    *,
    dtype: torch.dtype | None = None,
    layers: tuple[int, int] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Module:
    """Seeded random weights at the real dimensions: for latency work, not for pictures.

    As :func:`~fresco_trt.models.assembly.seeded`.
    """
    config = transformer_config(facts, layers=layers)
    return seeded(TRANSFORMER, config, dtype=dtype, seed=seed, device=device)


def _names(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """By diffusers' names, from these or the original ones."""
    return diffusers_names(tensors, what=what) if is_original(tensors) else dict(tensors)
