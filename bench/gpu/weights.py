"""Random weights made on the device: in memory once, and on disk no more than their description.

The plain pipeline and the engines use the same tensors, so nothing reads a file of weights. A
folder says what they are, as a build wants it; its file has the right length and takes no room,
because what lies behind its header was never written.
"""

from __future__ import annotations

import json
import struct
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.transformer import CODES, FOLDER, STORED, WEIGHTS, SharedTransformers
from fresco_trt.files.atomic_file import writing
from fresco_trt.models.flux.loading import random_transformer

if TYPE_CHECKING:
    from pathlib import Path

    from torch.nn import Module

    from bench.gpu.engines import Subject
    from fresco_trt.models.family import ModelFamily

_TYPES = {
    "torch.float32": STORED["fp32"],
    "torch.bfloat16": STORED["bf16"],
    "torch.float16": STORED["fp16"],
    "torch.float8_e4m3fn": CODES["fp8"],
}
"""Types as safetensors names them."""


class HeldTransformers(SharedTransformers):
    """Transformers that this process has made, by the folder that describes them."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[Path, Module] = {}

    def hold(self, source: Path, transformer: Module) -> None:
        """From now on, this is the transformer of that folder."""
        self._held[source.resolve()] = transformer

    def of(self, family: ModelFamily, source: Path) -> Module:
        """The transformer that was made for that folder. Raises KeyError for any other."""
        return self._held[source.resolve()]


def make_weights(subject: Subject, folder: Path) -> tuple[Module, dict[str, Any]]:
    """The transformer with seeded random weights on the device, described in ``folder``, and what
    that took. Raises OutputNotWritable or DiskFull.
    """
    from fresco_trt.backends.transformer import torch_device

    began = perf_counter()
    transformer = random_transformer(subject.facts, dtype=subject.dtype, device=torch_device())
    size = describe(transformer, folder / FOLDER)
    return transformer, {
        "parameters": subject.facts.parameters,
        "bytes": size,
        "made_seconds": perf_counter() - began,
    }


def describe(transformer: Module, folder: Path) -> int:
    """Write config.json and a file of weights that has no values in it; the bytes of that file."""
    untyped: Any = transformer
    config = {name: value for name, value in untyped.config.items() if not name.startswith("_")}
    config["_class_name"] = type(transformer).__name__
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in transformer.state_dict().items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _TYPES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        with (folder / WEIGHTS).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    return (folder / WEIGHTS).stat().st_size
