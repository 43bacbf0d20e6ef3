"""FLUX's transformer from its weights: a diffusers folder, one file in either naming, or a seed.

Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.files.canonical_json import excerpt
from fresco_trt.models.checkpoint import read_weights
from fresco_trt.models.extent import check_extent
from fresco_trt.models.flux.config import (
    REPOSITORIES,
    TRANSFORMER,
    transformer_config,
)
from fresco_trt.models.flux.original import diffusers_names, is_original
from fresco_trt.models.flux.variants import check_config
from fresco_trt.models.plain import check_finite, plain_weights, without_prefix
from fresco_trt.models.weights import check_names, find_transformer, read_config
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
    try:
        with torch.device("meta"):
            model: Module = untyped.FluxTransformer2DModel(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise IncompatibleOptions(
            f"a transformer that cannot be made ({excerpt(error)})",
            expected=f"the settings of a {TRANSFORMER}",
            fix="build the bundle again with this version",
        ) from error
    return model


def _assembled(source: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Module:
    tensors, what = read_weights(source), f"the weights at {source}"
    check_extent(config, tensors, source.name)
    model = _empty(config)
    if dtype is None:  # as a build has stored them, which may be as codes
        from fresco_trt.models.fp8 import make_room

        make_room(model, tensors)
    else:
        tensors = _plain(tensors, dtype, what)
    check_names(model, tensors, what=what)
    cast = {name: value.to(dtype or value.dtype) for name, value in tensors.items()}
    if dtype is not None:
        check_finite(cast, what=what)
    model.load_state_dict(cast, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _plain(tensors: Mapping[str, Tensor], dtype: torch.dtype, what: str) -> dict[str, Tensor]:
    """Anybody's tensors by diffusers' names, with nothing of their own form left."""
    plain = plain_weights(without_prefix(tensors, what=what), dtype, what=what)
    return diffusers_names(plain, what=what) if is_original(plain) else plain
