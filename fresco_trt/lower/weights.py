"""Weights on disk, once: the data file that all ONNX graphs share, and the eager source folder.

Between the model and the stage graphs in the data path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fresco_trt.files.atomic_file import writing

if TYPE_CHECKING:
    from torch.nn import Module

WEIGHTS_FILE = "weights.bin"

# Runtimes memory-map a tensor where it begins on a page; below a few pages the gaps cost more
# than the map saves, and a cache line is enough for vector loads.
PAGE = 4096
LINE = 64
_PAGED_FROM = 16 * PAGE


class WeightFile:
    """An append-only data file in which equal bytes are stored once.

    ``place`` returns (offset, length); offsets are multiples of 4096, or of 64 for tensors under
    64 KiB. The layout depends on the contents and their order alone.
    """

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path = path
        self._stream = stream
        self._places: dict[bytes, tuple[int, int]] = {}

    def place(self, data: bytes) -> tuple[int, int]:
        """Where ``data`` is in the file, appending it if it is not there yet."""
        key = hashlib.sha256(data).digest()
        if key not in self._places:
            self._places[key] = self._append(data)
        return self._places[key]

    def _append(self, data: bytes) -> tuple[int, int]:
        step = PAGE if len(data) >= _PAGED_FROM else LINE
        with writing(self.path):
            end = self._stream.tell()
            offset = -(-end // step) * step
            self._stream.write(b"\0" * (offset - end))
            self._stream.write(data)
        return offset, len(data)


@contextmanager
def weight_file(folder: Path) -> Iterator[WeightFile]:
    """A new ``weights.bin`` in ``folder``, put in place under its name from the start.

    Raises OutputNotWritable or DiskFull. An older file of that name is replaced, never modified:
    bundles that copied or mapped it keep their bytes.
    """
    path = folder / WEIGHTS_FILE
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        stream = path.open("wb")
    try:
        yield WeightFile(path, stream)
    finally:
        with writing(path):
            stream.close()


def write_source(transformer: Module, folder: Path) -> Path:
    """Write a diffusers transformer to ``folder`` as config.json and one safetensors file.

    Deterministic bytes: the configuration without versions and machine paths, tensors in their
    stored dtype. diffusers' own ``from_pretrained`` loads the result. Returns ``folder``; raises
    OutputNotWritable or DiskFull.
    """
    from safetensors.torch import save_file

    untyped: Any = transformer
    config = {name: value for name, value in untyped.config.items() if not name.startswith("_")}
    config["_class_name"] = type(transformer).__name__
    tensors = {name: value.contiguous() for name, value in transformer.state_dict().items()}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n")
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder
