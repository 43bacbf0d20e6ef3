"""FLUX's original names to diffusers': the same weights, some of them divided, at any width.

Between a checkpoint's plain weights and the transformer in the data path. The names are those of
Black Forest Labs' own code (``double_blocks``, ``single_blocks``), which ComfyUI keeps. Torch is
not imported here: everything is a method of the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.weights import name_differences

if TYPE_CHECKING:
    from torch import Tensor

_DOUBLE, _SINGLE = "double_blocks", "single_blocks"
_GUIDANCE = "guidance_in"
_SWAPPED = "final_layer.adaLN_modulation.1"
"""Gives shift and scale; diffusers' own layer gives scale and shift."""

# Each layer has a weight and a bias. Where one becomes several, its rows are divided among them:
# as many for each as the model is wide, and the rest for the last.
_AROUND = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    _SWAPPED: ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}
_IN_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_IN_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
# Norms of queries and keys have a scale alone.
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}

Names = dict[str, tuple[str, ...]]


def is_original(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint has the original names."""
    return any(name.startswith((f"{_DOUBLE}.", f"{_SINGLE}.")) for name in tensors)


def diffusers_names(tensors: Mapping[str, Tensor], *, what: str) -> dict[str, Tensor]:
    """The tensors by diffusers' names, those that became several as copies.

    Width and depth are the checkpoint's own. Raises IncompatibleOptions, which names them by their
    original names, for tensors that are missing, left over, or not to be divided so.
    """
    names = _names(tensors)
    differs = name_differences(tensors.keys(), names.keys())
    if differs:
        raise IncompatibleOptions(
            f"{what}: {'; '.join(differs)}",
            expected=f"the {len(names)} tensors of a FLUX transformer by their original names",
            fix="pass the whole transformer, without adapters, in one file",
        )
    width = _rows(tensors["img_in.weight"])
    found: dict[str, Tensor] = {}
    for name, targets in names.items():
        value = tensors[name]
        if name.rpartition(".")[0] == _SWAPPED and value.ndim:
            value = value.roll(len(value) // 2, 0)
        found |= _divided(name, value, targets, width, what)
    return found


def _names(tensors: Mapping[str, Tensor]) -> Names:
    """What every tensor of a whole checkpoint of this depth becomes, by its original name."""
    around = dict(_AROUND)
    if not any(name.startswith(f"{_GUIDANCE}.") for name in tensors):
        around = {name: to for name, to in around.items() if not name.startswith(_GUIDANCE)}
    names = dict(_layers(around, "", ""))
    for kind, to, layers, norms in (
        (_DOUBLE, "transformer_blocks", _IN_DOUBLE, _DOUBLE_NORMS),
        (_SINGLE, "single_transformer_blocks", _IN_SINGLE, _SINGLE_NORMS),
    ):
        for index in range(_depth(tensors, kind)):
            before, after = f"{kind}.{index}.", f"{to}.{index}."
            names |= _layers(layers, before, after)
            names |= {
                f"{before}{norm}.scale": (f"{after}{new}.weight",) for norm, new in norms.items()
            }
    return names


def _layers(
    layers: Mapping[str, tuple[str, ...]], before: str, after: str
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for layer, targets in layers.items():
        for part in ("weight", "bias"):
            yield f"{before}{layer}.{part}", tuple(f"{after}{to}.{part}" for to in targets)


def _depth(tensors: Mapping[str, Tensor], kind: str) -> int:
    """Blocks of a kind, up to the last that any name has."""
    indices = (name.split(".")[1] for name in tensors if name.startswith(f"{kind}."))
    depths = (int(index) + 1 for index in indices if index.isdecimal())
    # No more than there are tensors: what has another number is left over.
    return max((depth for depth in depths if depth <= len(tensors)), default=0)


def _divided(
    name: str, value: Tensor, targets: tuple[str, ...], width: int, what: str
) -> dict[str, Tensor]:
    """The rows of a tensor by the names they go to."""
    if len(targets) == 1:
        return {targets[0]: value}
    rows = _rows(value)
    rest = rows - width * (len(targets) - 1)
    if rest <= 0 or (len(targets) == 3 and rest != width):
        raise IncompatibleOptions(
            f"{what}: {name} has {rows} rows in a model that is {width} wide",
            expected=f"rows for {', '.join(targets)}",
            fix="pass the weights of a FLUX transformer, whole",
        )
    begins = range(0, width * len(targets), width)
    ends = (*begins[1:], rows)
    # Copies: engine libraries write a tensor's whole storage, and these would share theirs.
    return {
        target: value[begin:end].clone()
        for target, begin, end in zip(targets, begins, ends, strict=True)
    }


def _rows(value: Tensor) -> int:
    return len(value) if value.ndim else 0
