"""Projections of a FLUX block that share an input, as one matrix product over the same weights.

Under ``blocks.py``. Queries, keys and values of a stream are three products of what its norm gives,
and a single-stream block's MLP projection is a fourth; with few tokens one product of all their
rows takes less time than they do one after the other. The weights lie side by side in one tensor,
and those of the layers are rows of it: whoever holds the layers reads and changes the same memory.

Fused are linear layers of one type and width: plain ones, and those of FP8 codes with a scale for
every row, whose inputs are then rounded once instead of once for each layer. Any others stay as
they are: where codes have one scale for a whole weight, one product has no scale for its parts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fresco_trt.models.fp8 import RowwiseFp8Linear

_QUERIES = ("attn.to_q", "attn.to_k", "attn.to_v")
_GROUPS = {
    "norm1": _QUERIES,
    "norm1_context": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "norm": (*_QUERIES, "proj_mlp"),
}
"""The layers that take what a norm gives, and nothing else takes it, in either kind of block."""

_BY_ROWS = (nn.Linear, RowwiseFp8Linear)
"""What computes each of its channels from a row of its tensors and from nothing else of them."""


def fused(block: nn.Module) -> nn.Module:
    """A second module over the same parameters, whose projections are one product for each input;
    ``block`` itself where no layers can be fused.

    The layers' weights are moved next to each other unless they are: ``block`` computes what it
    did, bit for bit, but what holds addresses of its weights must be made afterwards.
    """
    layers: dict[str, nn.Module] = {}
    for norm, paths in _groups(block):
        members: list[Any] = [block.get_submodule(path) for path in paths]
        layers[norm] = NormedProjection(block.get_submodule(norm), _one(members))
        ends = accumulate((len(layer.weight) for layer in members), initial=0)
        layers |= {path: Columns(*span) for path, span in zip(paths, pairwise(ends), strict=True)}
    return _with(block, layers) if layers else block


def join_weights(transformer: Any, device: str) -> None:
    """Move what :func:`fused` has side by side there, and to ``device``, layer by layer: at no time
    is more than one fused layer in memory twice. All else stays where it is.
    """
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for _, paths in _groups(block):
            for tensors in _rows([block.get_submodule(path) for path in paths]).values():
                _joined(tensors, torch.device(device))


# --- modules ----------------------------------------------------------------------------------


class NormedProjection(nn.Module):
    """A block's norm, and all layers that take what it gives, as one."""

    def __init__(self, norm: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.norm, self.projection = norm, projection

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """As the norm, with [B,S,rows of all layers] in place of its first output [B,S,H]."""
        normed, *others = self.norm(*inputs, **named)
        return (self.projection(normed), *others)


class Columns(nn.Module):
    """What one layer would have given, from what all of them gave: channels ``start`` to ``stop``.

    It stands where the layer was, so whatever processes attention needs to know nothing of it.
    """

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, projected: Tensor) -> Tensor:
        """A view [...,stop-start] of ``projected`` [...,rows of all layers]."""
        return projected[..., self.start : self.stop]


def _with(module: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A second module over the same parameters that has ``layers`` at their paths."""
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    below: dict[str, dict[str, nn.Module]] = {}
    for path, layer in layers.items():
        name, _, rest = path.partition(".")
        if rest:
            below.setdefault(name, {})[rest] = layer
        else:
            shell._modules[name] = layer
    for name, inner in below.items():
        shell._modules[name] = _with(module.get_submodule(name), inner)
    return shell


# --- layers -----------------------------------------------------------------------------------


def _groups(block: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Those of a block whose layers can be one, each with the norm before it."""
    for norm, paths in _GROUPS.items():
        if hasattr(block, norm) and _alike([block.get_submodule(path) for path in paths]):
            yield norm, paths


def _alike(layers: Sequence[nn.Module]) -> bool:
    """Told by kinds and shapes alone, so that a build without the weights tells the same."""
    kinds = {(type(layer), *map(_form, _tensors(layer).items())) for layer in layers}
    return len(kinds) == 1 and not any(map(_computes_more, layers))


def _form(named: tuple[str, Tensor]) -> tuple[object, ...]:
    """What the rows of two layers must have in common to be rows of one."""
    name, tensor = named
    return name, type(tensor.data), tensor.dtype, tensor.device, tensor.shape[1:]


def _computes_more(layer: nn.Module) -> bool:
    """Whether a layer is more than its rows say: an adapter's, of packed weights, or hooked."""
    plain = all(type(each.data) is Tensor for each in _tensors(layer).values())
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) not in _BY_ROWS or not plain or bool(hooked)


def _one(layers: Sequence[Any]) -> Any:
    """A layer of the rows of all ``layers``, over their memory."""
    one = copy.copy(layers[0])
    one._parameters, one._buffers = dict(one._parameters), dict(one._buffers)
    for name, each in _rows(layers).items():
        whole = _joined(each, each[0].device)
        is_parameter = isinstance(each[0], nn.Parameter)
        setattr(one, name, nn.Parameter(whole, requires_grad=False) if is_parameter else whole)
    if isinstance(one, nn.Linear):
        one.out_features = len(one.weight)
    return one


def _rows(layers: Sequence[nn.Module]) -> dict[str, list[Tensor]]:
    """By name the tensors of layers that are alike."""
    return {name: [_tensors(layer)[name] for layer in layers] for name in _tensors(layers[0])}


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Those that have a row for each channel that a layer gives."""
    tensors = {**layer._parameters, **layer._buffers}
    return {name: each for name, each in tensors.items() if each is not None and each.ndim > 0}


# --- memory -----------------------------------------------------------------------------------


def _joined(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """One tensor of the rows of all ``tensors`` on ``device``, of which each is a part from now."""
    there = _whole(tensors)
    if there is not None and there.device.type == device.type:
        return there
    counts = [len(each) for each in tensors]
    shape = (sum(counts), *tensors[0].shape[1:])
    whole = torch.empty(shape, dtype=tensors[0].dtype, device=device)
    for each, rows in zip(tensors, torch.split(whole, counts), strict=True):
        each.data = rows.copy_(each.detach())
    return whole


def _whole(tensors: Sequence[Tensor]) -> Tensor | None:
    """The tensor that ``tensors`` are all rows of, in order, and nothing else is; None without."""
    first, taken = tensors[0], 0
    memory = first.untyped_storage()
    for each in tensors:
        same = each.untyped_storage().data_ptr() == memory.data_ptr()
        if not (same and each.is_contiguous() and each.storage_offset() == taken):
            return None
        taken += each.numel()
    if memory.nbytes() != taken * first.element_size():
        return None
    shape = (sum(map(len, tensors)), *first.shape[1:])
    return first.detach().as_strided(shape, first.stride())
