"""Parts of a pipeline whose files hold other tensors than their model has, or lead elsewhere.

Each of ``ATTACKS`` changes a bundle in place, or a bare pipeline folder. Files are replaced, so
that a copy by hard links leaves its original alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from tests.hostile.digests import replaced

Attack = Callable[[Path], None]
Tensors = dict[str, torch.Tensor]

PARTS = {
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
ELSEWHERE = ("../model.safetensors", "../../x.safetensors", "/dev/zero", "/proc/self/mem")


def part_of(folder: Path, name: str) -> Path:
    """A part of a bundle, or of a pipeline folder."""
    inside = folder / "pipeline"
    return (inside if inside.is_dir() else folder) / name


def changed_tensors(part: str, change: Callable[[Tensors], Tensors], folder: Path) -> None:
    """Other tensors in the one file of a part."""
    file = part_of(folder, part) / PARTS[part]
    replaced(file, save(change(load_file(file)), {"format": "pt"}))


def changed_config(path: str, settings: dict[str, Any], folder: Path) -> None:
    """More settings in a configuration."""
    file = part_of(folder, path)
    replaced(file, json.dumps(json.loads(file.read_bytes()) | settings).encode())


def lacking(tensors: Tensors) -> Tensors:
    """Without a norm: of all tensors the one whose random stand-in looks most like it."""
    name = next(name for name in sorted(tensors) if "norm" in name)
    return {key: value for key, value in tensors.items() if key != name}


def surplus(tensors: Tensors) -> Tensors:
    return tensors | {"more.weight": torch.ones(2)}


def misshapen(tensors: Tensors) -> Tensors:
    name = next(name for name in sorted(tensors) if "norm" in name)
    return tensors | {name: torch.ones(7)}


def retyped(part: str, dtype: torch.dtype, folder: Path) -> None:
    """The bytes of one tensor as other numbers of the same size: no check of shapes sees it."""
    changed_tensors(part, partial(_relabelled, dtype), folder)


def _relabelled(dtype: torch.dtype, tensors: Tensors) -> Tensors:
    name = next(name for name in sorted(tensors) if "norm" in name)
    return tensors | {name: tensors[name].view(dtype)}


def indexed(part: str, folder: Path, *, shard: str = "shard.safetensors", lacks: int = 0) -> None:
    """The one file as a shard and an index, which lists tensors that the shard lacks."""
    file = part_of(folder, part) / PARTS[part]
    tensors = load_file(file)
    kept = dict(sorted(tensors.items())[lacks:])
    file.unlink()
    if shard == Path(shard).name:
        replaced(file.with_name(shard), save(kept, {"format": "pt"}))
    told = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    replaced(file.with_name(f"{file.name}.index.json"), json.dumps(told).encode())


def piped(part: str, folder: Path) -> None:
    """A pipe in the weights' place, which nobody writes into: not in a bundle, which has files."""
    file = part_of(folder, part) / PARTS[part]
    file.unlink()
    os.mkfifo(file)


def attacks() -> Iterator[tuple[str, Attack]]:
    for part in PARTS:
        for change in (lacking, surplus, misshapen):
            yield f"{part}: {change.__name__}", partial(changed_tensors, part, change)
        yield f"{part}: an index beyond its shard", partial(indexed, part, lacks=1)
    for number, shard in enumerate(ELSEWHERE):
        part = tuple(PARTS)[number % len(PARTS)]
        yield f"{part}: {shard}", partial(indexed, part, shard=shard)
    for path, settings in (
        ("text_encoder/config.json", {"_attn_implementation": "somebody/kernels"}),
        ("text_encoder_2/config.json", {"attn_implementation": "somebody/kernels@main"}),
        ("text_encoder/config.json", {"configuration_files": ["../config.1.0.json"]}),
        ("tokenizer/tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.1.json"]}),
        ("tokenizer_2/tokenizer_config.json", {"vocab_file": "/etc/hostname"}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["some/x--t.T", None]}}),
        ("vae/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}),
    ):
        yield f"{path}: {next(iter(settings))}", partial(changed_config, path, settings)


ATTACKS: dict[str, Attack] = dict(attacks())

RETYPED: dict[str, Attack] = {
    f"{part}: {dtype}": partial(retyped, part, dtype)
    for part, dtype in zip(PARTS, (torch.int32, torch.uint32, torch.int32), strict=True)
}
