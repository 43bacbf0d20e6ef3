"""HunyuanVideo's transformer from its weights: a diffusers folder, one file, or a seed.

Importing this file imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.models.assembly import assembled, seeded, stored
from fresco_trt.models.hunyuan.config import (
    REPOSITORIES,
    TRANSFORMER,
    check_config,
    transformer_config,
)
from fresco_trt.models.weights import find_transformer
from fresco_trt.plan.facts import ModelFacts

if TYPE_CHECKING:
    import torch
    from torch.nn import Module


def load_transformer(
    weights: str | Path | None,
    facts: ModelFacts,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Module:
    """The transformer of ``facts`` in evaluation mode on the CPU, in ``dtype`` (default float32).

    ``weights`` is a diffusers pipeline folder, a transformer folder, a ``.safetensors`` file by
    diffusers' names, None for the packaged weights or the hub, or ``"random"``. Raises
    WeightsNotFound, UnsupportedWeights for such as are packed, pickled or not finite, and
    IncompatibleOptions if they are another model's.
    """
    import torch

    config = transformer_config(facts)
    if weights == "random":
        return seeded(TRANSFORMER, config, dtype=dtype, seed=seed)
    path = None if weights is None else Path(weights)
    source = find_transformer(path, model=facts.name, repository=REPOSITORIES.get(facts.name))
    if source.is_dir():
        check_config(source, facts)
    return assembled(source, TRANSFORMER, config, dtype or torch.float32)


def transformer_from_folder(folder: Path) -> Module:
    """The transformer of a folder as it is stored: its own dimensions, its own dtype, on the CPU.

    For engines, whose folder a build has checked. Raises WeightsNotFound or IncompatibleOptions.
    """
    return stored(folder, TRANSFORMER)
