"""FLUX's transformer from its weights: a diffusers folder, one file in either naming, or a seed.

Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.flux.config import (
    REPOSITORIES,
    TRANSFORMER,
    check_config,
    transformer_config,
)
from fresco_trt.models.weights import check_names, find_transformer, read_config, read_weights
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
    Raises WeightsNotFound, and IncompatibleOptions if the weights are another model's.
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
    return _assembled(source, transformer_config(facts), dtype or torch.float32)


def transformer_from_folder(folder: Path) -> Module:
    """The transformer of a folder as it is stored: its own dimensions, its own dtype, on the CPU.

    For engines, whose folder a build has checked. Raises WeightsNotFound or IncompatibleOptions.
    """
    stored = read_config(folder)
    if stored.get("_class_name") != TRANSFORMER:
        raise IncompatibleOptions(
            f"a transformer of the class {stored.get('_class_name')}",
            expected=TRANSFORMER,
            fix="build the bundle again with this version",
        )
    config = {name: value for name, value in stored.items() if not name.startswith("_")}
    return _assembled(folder, config, None)


def random_transformer(
    facts: ModelFacts,
    *,
    dtype: torch.dtype | None = None,
    layers: tuple[int, int] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Module:
    """Seeded random weights at the real dimensions: for latency work, not for pictures.

    Made on ``device``; of one seed each kind of device makes its own.
    """
    import torch

    from fresco_trt.models.flux.graph import initialise

    model = _empty(transformer_config(facts, layers=layers))
    # diffusers' own ``to`` warns about every cast; this is the plain one.
    model = torch.nn.Module.to(model, dtype or torch.float32).to_empty(device=device)
    initialise(model, seed=seed)
    return model.eval().requires_grad_(False)


def _empty(config: Mapping[str, Any]) -> Module:
    """The architecture on the meta device: no memory is touched before the weights arrive."""
    import diffusers
    import torch

    untyped: Any = diffusers
    with torch.device("meta"):
        model: Module = untyped.FluxTransformer2DModel(**config)
    return model


def _assembled(source: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Module:
    tensors = _diffusers_names(read_weights(source))
    model = _empty(config)
    if dtype is None:  # as they are stored, which may be as codes
        from fresco_trt.models.fp8 import make_room

        make_room(model, tensors)
    check_names(model, tensors, what=f"the weights at {source}")
    cast = {name: value.to(dtype or value.dtype) for name, value in tensors.items()}
    model.load_state_dict(cast, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _diffusers_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Original checkpoints name their blocks ``double_blocks``; diffusers has the converter."""
    if not any("double_blocks." in name for name in tensors):
        return tensors
    from diffusers.loaders import single_file_utils

    untyped: Any = single_file_utils
    converted: dict[str, Tensor]
    converted = untyped.convert_flux_transformer_checkpoint_to_diffusers(tensors)
    return converted
