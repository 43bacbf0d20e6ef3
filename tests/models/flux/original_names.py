"""A transformer's weights by their original names, made the other way round than they are read."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_AROUND = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_DOUBLE_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
_SINGLE_NORMS = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}


def original(transformer: nn.Module) -> dict[str, Tensor]:
    """The weights as Black Forest Labs' own code names them: fused, and shift before scale."""
    ours, theirs = dict(transformer.state_dict()), dict[str, Tensor]()

    def take(to: str, *names: str) -> None:
        for part in ("weight", "bias"):
            theirs[f"{to}.{part}"] = torch.cat([ours.pop(f"{name}.{part}") for name in names])

    for name, to in _AROUND.items():
        if f"{name}.weight" in ours:
            take(to, name)
    for part in ("weight", "bias"):
        scale, shift = ours.pop(f"norm_out.linear.{part}").chunk(2)
        theirs[f"final_layer.adaLN_modulation.1.{part}"] = torch.cat([shift, scale])
    for index in range(_blocks(ours, "transformer_blocks")):
        mine, his = f"transformer_blocks.{index}.", f"double_blocks.{index}."
        for name, to in _DOUBLE.items():
            take(his + to, mine + name)
        take(f"{his}img_attn.qkv", *(f"{mine}attn.to_{each}" for each in "qkv"))
        take(f"{his}txt_attn.qkv", *(f"{mine}attn.add_{each}_proj" for each in "qkv"))
    for index in range(_blocks(ours, "single_transformer_blocks")):
        mine, his = f"single_transformer_blocks.{index}.", f"single_blocks.{index}."
        take(f"{his}modulation.lin", f"{mine}norm.linear")
        take(f"{his}linear1", *(f"{mine}attn.to_{each}" for each in "qkv"), f"{mine}proj_mlp")
        take(f"{his}linear2", f"{mine}proj_out")
    return theirs | {_norm(name): value for name, value in ours.items()}


def _blocks(names: Iterable[str], kind: str) -> int:
    return len({name.split(".")[1] for name in names if name.startswith(f"{kind}.")})


def _norm(name: str) -> str:
    """The original name of a norm of queries or keys: all that is left in the end."""
    kind, index, norm = name.removesuffix(".weight").split(".", 2)
    if kind == "transformer_blocks":
        return f"double_blocks.{index}.{_DOUBLE_NORMS[norm]}.scale"
    return f"single_blocks.{index}.{_SINGLE_NORMS[norm]}.scale"
