"""How large the files of a bundle may be, by the model that it says it is of.

Asked of a manifest before a byte of its files is read: a sparse file of any size costs whoever
wrote it nothing, and hashing it takes minutes. The caps are far over what any build writes; what
the files hold is held against the model later, when they are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fresco_trt.backends.inductor.archive import MOST_BYTES as MOST_ARCHIVE_BYTES
from fresco_trt.backends.onnx_graph import MAX_BYTES as MAX_GRAPH_BYTES
from fresco_trt.errors import ManifestInvalid, UnknownModel
from fresco_trt.files.canonical_json import REBUILD, quoted
from fresco_trt.models.extent import MAX_TOKENIZER_BYTES

if TYPE_CHECKING:
    from fresco_trt.bundle.manifest import Manifest
    from fresco_trt.plan.facts import ModelFacts

CAPS = {".onnx": MAX_GRAPH_BYTES, ".pt2": MOST_ARCHIVE_BYTES}
"""Most bytes of a file by its ending, where it holds no weights."""

WEIGHTS = (".bin", ".plan", ".safetensors")
"""Ends of files that hold weights; all others are small."""

_FLOAT32 = 4
_SLACK = 64 * 1024 * 1024  # of a file of weights: its header, an engine's own code and constants

# Encoders of a width, the largest there are: Llama-3-8B, 4096 wide, has 479 times the square of its
# width and 257,000 times its width; T5-XXL 278 and 32,000; Qwen2.5-VL-7B, 3584 wide, 646 in all.
_ENCODER_BLOCKS, _VOCABULARY = 640, 262_144
_DECODER = 256 * 1024 * 1024  # parameters: FLUX.1's has 84 million, HunyuanVideo's 246


def check_sizes(manifest: Manifest) -> None:
    """Raise ManifestInvalid for a file, or weights together, that are larger than any of the model.

    Of a model that this version does not know, than any of the largest that it does.
    """
    for given, most in _problems(manifest, _facts(manifest.model.name)):
        raise ManifestInvalid(
            given, expected=f"at most {most} bytes", fix=f"do not use this bundle; {REBUILD}"
        )


def _facts(name: str) -> ModelFacts:
    from fresco_trt.models.registry import model_facts, model_names

    try:
        return model_facts(name)
    except UnknownModel:
        return max(map(model_facts, model_names()), key=lambda facts: facts.parameters)


def _problems(manifest: Manifest, facts: ModelFacts) -> Iterator[tuple[str, int]]:
    """What is too large, and how large it may be."""
    inside = f"{manifest.pipeline.folder}/"
    of_parts = of_engines = plans = 0
    for file in manifest.files:
        if not file.path.endswith(WEIGHTS):
            most = next((c for end, c in CAPS.items() if file.path.endswith(end)), None)
            most = MAX_TOKENIZER_BYTES if most is None else most
            if file.bytes > most:
                yield f"{quoted(file.path)} of {file.bytes} bytes", most
        elif file.path.startswith(inside):
            of_parts += file.bytes
        else:
            of_engines += file.bytes
            plans += file.path.endswith(".plan")
    if of_engines > (most := most_of_engines(facts, plans)):
        yield f"engines of {facts.name} with weights of {of_engines} bytes", most
    if of_parts > (most := most_of_parts(facts)):
        yield f"encoders and decoder of {facts.name} with weights of {of_parts} bytes", most


def most_of_engines(facts: ModelFacts, plans: int) -> int:
    """Bytes of the transformer in float32, once for each TensorRT plan, and a little."""
    return max(1, plans) * (_FLOAT32 * facts.parameters * 5 // 4 + _SLACK)


def most_of_parts(facts: ModelFacts) -> int:
    """Bytes in float32 of the largest prompt encoders of the model's widths, and of a decoder."""
    widths = (facts.text_dim, facts.pooled_dim)
    encoders = sum(_ENCODER_BLOCKS * width**2 + _VOCABULARY * width for width in widths)
    return _FLOAT32 * (encoders + _DECODER) + 2 * _SLACK
