"""The files of compiled pieces: their names, and the attention that each was compiled with.

Under ``backend.py``. A name says what the code relies on, so that two stages share a piece where
they can. Which attention that is was measured on the GPU that the piece is for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fresco_trt.backends.inductor.attention import (
    DEFAULT,
    Choice,
    Operands,
    attention_of,
    choose,
    read_choices,
    trial_of,
    write_choices,
)
from fresco_trt.backends.inductor.build import shapes_of
from fresco_trt.backends.transformer import torch_device

if TYPE_CHECKING:
    from fresco_trt.backends.base import BuildOptions
    from fresco_trt.models.family import Part

BLOCKS = "blocks"
ATTENTION = f"{BLOCKS}/attention.json"
"""Which attention each piece was compiled with, and what was measured; only where built on a GPU.
"""


def file_of(part: Part, choices: Mapping[str, str]) -> str:
    """Relative. ``choices`` are kinds of attention, by the names of pieces with torch's own."""
    return f"{BLOCKS}/{name_of(part, choices.get(name_of(part, DEFAULT), DEFAULT))}.pt2"


def name_of(part: Part, attention: str) -> str:
    """By everything that the compiled code of one model relies on: the same in two stages where
    they can share it, and never that of other weights.
    """
    relied_on = [part.name, part.signature.to_json(), shapes_of(part.layers[0])]
    if attention != DEFAULT:
        relied_on.append(attention)
    digest = hashlib.sha256(json.dumps(relied_on, sort_keys=True).encode()).hexdigest()
    return f"{part.name}-{digest[:12]}"


def choose_attention(parts: Sequence[Part], options: BuildOptions) -> None:
    """Measure what was not measured before, each shape once, before anything else uses the GPU."""
    trial = trial_of(torch_device())
    if trial is None:
        return
    path = options.folder / ATTENTION
    known = read_choices(path)
    found: dict[str, Choice] = {}
    tried: dict[Operands, Choice] = {}
    for part in parts:
        name = name_of(part, DEFAULT)
        # Sparse attention is a kernel of its own: there is nothing to choose.
        measured = name in known or part.signature.key_blocks is not None
        operands = None if measured else _operands(part, options)
        if operands is not None:
            if operands not in tried:
                options.progress(f"time attention of {part.name}", 0.0)
                tried[operands] = choose(operands, trial)
            found[name] = tried[operands]
    if found:
        write_choices(path, found)


def _operands(part: Part, options: BuildOptions) -> Operands | None:
    """None, too, for a layer that cannot be called without memory: it keeps torch's own choice."""
    try:
        return attention_of(part.layers[0], part.signature)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        options.progress(f"attention of {part.name} is torch's own choice: {said}", 0.0)
        return None
