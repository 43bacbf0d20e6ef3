"""A diffusers transformer from stored tensors, or from a seed: what is the same in every family.

Under the families' own loaders, which know the class, its settings and how its tensors are named.
Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.files.canonical_json import excerpt
from fresco_trt.models.checkpoint import read_weights
from fresco_trt.models.difference import read_whole
from fresco_trt.models.extent import check_extent
from fresco_trt.models.plain import check_finite, plain_weights, without_prefix
from fresco_trt.models.weights import check_names, read_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    Names = Callable[[Mapping[str, Tensor], str], dict[str, Tensor]]


def as_they_are(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Tensors by the names that they have: for a family with no naming but diffusers'."""
    return dict(tensors)


def assembled(
    source: Path,
    kind: str,
    config: Mapping[str, Any],
    dtype: torch.dtype | None,
    names: Names = as_they_are,
) -> Module:
    """The transformer of diffusers' class ``kind`` over the weights at ``source``, on the CPU.

    In ``dtype``, by the names that ``names`` gives them (called with the tensors, and with what
    errors call them); None: as a build has stored them, which may be as codes. Raises as
    :func:`~fresco_trt.models.weights.check_names`, and what reading does.
    """
    # A bundle has its weights in full.
    tensors = read_weights(source) if dtype is None else read_whole(source)
    what = f"the weights at {source}"
    check_extent(config, tensors, source.name)
    model = _empty(kind, config)
    if dtype is None:
        from fresco_trt.models.fp8 import make_room

        make_room(model, tensors)
    else:
        plain = plain_weights(without_prefix(tensors, what=what), dtype, what=what)
        tensors = names(plain, what)
    check_names(model, tensors, what=what)
    cast = {name: value.to(dtype or value.dtype) for name, value in tensors.items()}
    if dtype is not None:
        check_finite(cast, what=what)
    model.load_state_dict(cast, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def stored(folder: Path, kind: str) -> Module:
    """The transformer of a folder as a build stored it: its own dimensions and dtype, on the CPU.

    Raises WeightsNotFound, and IncompatibleOptions for one of another class than ``kind``.
    """
    told = read_config(folder)
    if told.get("_class_name") != kind:
        raise IncompatibleOptions(
            f"a transformer of the class {told.get('_class_name')}",
            expected=kind,
            fix="build the bundle again with this version",
        )
    config = {name: value for name, value in told.items() if not name.startswith("_")}
    return assembled(folder, kind, config, None)


def seeded(
    kind: str,
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Module:
    """The transformer of ``config`` with :func:`initialise`'s weights, made on ``device``; of one
    seed each kind of device makes its own.
    """
    import torch

    model = _empty(kind, config)
    # diffusers' own ``to`` warns about every cast; this is the plain one.
    model = torch.nn.Module.to(model, dtype or torch.float32).to_empty(device=device)
    initialise(model, seed=seed)
    return model.eval().requires_grad_(False)


def initialise(module: Module, *, seed: int) -> None:
    """Fill every parameter in place, seeded: a latency model needs sane sizes, not knowledge.

    Matrices are uniform within ``1/sqrt(fan_in)`` (torch's own rule for linear layers), biases
    uniform within 0.02 of zero and the scales of norms within 0.02 of one: no two alike and none
    neutral, or constant folding would make a cheaper graph than real weights give.
    """
    import torch

    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            vector = parameter.ndim == 1
            bound = 0.02 if vector else parameter.shape[1] ** -0.5
            parameter.uniform_(-bound, bound, generator=generator)
            if vector and not name.endswith("bias"):
                parameter.add_(1.0)


def _empty(kind: str, config: Mapping[str, Any]) -> Module:
    """The architecture on the meta device: no memory is touched before the weights arrive."""
    import diffusers
    import torch

    untyped: Any = diffusers
    try:
        with torch.device("meta"):
            model: Module = getattr(untyped, kind)(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise IncompatibleOptions(
            f"a transformer that cannot be made ({excerpt(error)})",
            expected=f"the settings of a {kind}",
            fix="build the bundle again with this version",
        ) from error
    return model
