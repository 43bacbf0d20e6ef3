"""A checkpoint's tensors as plain weights: scales multiplied in, no prefix, and nothing packed.

Between a checkpoint's files and a family's names in the data path; shared by every family. Scaled
FP8 is read as ComfyUI writes it (``scale_weight``, or ``weight_scale`` in its newer files): a
weight is its codes times one float32 scale, of the tensor or of each row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.errors import UnsupportedWeights
from fresco_trt.models.checkpoint import counted, read_weights
from fresco_trt.models.finite import all_finite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PREFIXES = ("model.diffusion_model.", "diffusion_model.")

# What a checkpoint of a whole pipeline holds beside its transformer; a build takes these parts
# from a pipeline folder.
_OTHER_PARTS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.")

_SCALES = (".scale_weight", ".weight_scale")
_INPUT_SCALES = (".scale_input", ".input_scale", ".unit_scale")
_FORMAT = ".comfy_quant"
_MARK = "scaled_fp8"

_PACKED = {
    ".absmax": "bitsandbytes, 4 bits (NF4 or FP4)",
    ".quant_map": "bitsandbytes, 4 bits (NF4 or FP4)",
    ".SCB": "bitsandbytes, 8 bits",
    ".qweight": "SVDQuant, GPTQ or AWQ",
    ".wscales": "SVDQuant",
    ".weight._data": "quanto",
    ".weight_qdata": "torchao",
    ".weight_scale_2": "NVFP4",
    ".weight_scale_inv": "FP8 with a scale a block",
}


def without_prefix(tensors: Mapping[str, Tensor], *, what: str) -> dict[str, Tensor]:
    """The transformer's tensors by their names in it, from a checkpoint of it or of a pipeline.

    ComfyUI's ``model.diffusion_model.`` or ``diffusion_model.`` is taken off, and encoders and
    decoder beside it are left out. Raises UnsupportedWeights for two tensors of one name.
    """
    prefix = next((each for each in _PREFIXES if any(n.startswith(each) for n in tensors)), None)
    if prefix is None:
        return dict(tensors)
    kept: dict[str, Tensor] = {}
    for name, value in tensors.items():
        bare = name.removeprefix(prefix)
        if bare == name and name.startswith(_OTHER_PARTS):
            continue
        if bare in kept:
            raise UnsupportedWeights(
                f"{what} hold {bare} twice, with and without {prefix}",
                expected="every tensor once",
                fix="leave out those that are not of this model",
            )
        kept[bare] = value
    return kept


def plain_weights(
    tensors: Mapping[str, Tensor], dtype: torch.dtype, *, what: str
) -> dict[str, Tensor]:
    """``tensors``, those that have scales in ``dtype`` and multiplied by them; no scales.

    The scales of a layer's inputs are dropped: nothing is quantised at run time. Raises
    UnsupportedWeights for weights that are packed, whose scales are of another form, or of which
    only some have the scale that their FP8 codes need.
    """
    _refuse_packed(tensors, what)
    layers = {name.removesuffix(end): name for name, end in _ending(tensors, _SCALES)}
    formats = {name.removesuffix(end): name for name, end in _ending(tensors, (_FORMAT,))}
    companions = {name for name, _ in _ending(tensors, (*_SCALES, _FORMAT))}
    companions |= {
        name for name, end in _ending(tensors, _INPUT_SCALES) if name.removesuffix(end) in layers
    }
    if len(companions & {f"{layer}{end}" for layer in layers for end in _SCALES}) > len(layers):
        raise _unsupported(what, "hold two scales of one weight")
    for layer, name in formats.items():
        _check_format(what, name, tensors[name], scaled=layer in layers)
    _check_codes(tensors, layers, what)
    plain = {
        name: value for name, value in tensors.items() if name not in companions and name != _MARK
    }
    for layer, name in layers.items():
        weight = f"{layer}.weight"
        if weight not in plain:
            raise _unsupported(what, f"hold {name}, and no {weight}")
        plain[weight] = _scaled(plain[weight], tensors[name], dtype, f"{what} hold {name}")
    return plain


def check_finite(tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Raise UnsupportedWeights, which names the first, if a number is infinite or none."""
    wrong = [name for name, value in tensors.items() if not all_finite(value)]
    if wrong:
        dtype = str(tensors[wrong[0]].dtype).removeprefix("torch.")
        raise UnsupportedWeights(
            f"{what}: not finite in {dtype}: {counted(wrong)}",
            expected="finite numbers: engines of these would draw black pictures",
            fix="pass weights that are whole; fp16 has no numbers over 65504, bf16 and fp32 have",
        )


def check_unscaled(file: Path) -> None:
    """Raise for a file that another library will read as it is, and that holds what is not finite,
    packed, or scaled: that library would leave the scales out. UnsupportedWeights; WeightsNotFound
    for one that cannot be read.
    """
    tensors, what = read_weights(file), f"the weights at {file}"
    scales = _ending(tensors, (*_SCALES, *_INPUT_SCALES, _MARK))
    if scales:
        raise _unsupported(what, f"hold {scales[0][0]}, which nothing would multiply in")
    # Positions are counted in int64, and some files still list them.
    numbers = {name: value for name, value in tensors.items() if value.dtype.itemsize < 8}
    _refuse_packed(numbers, what)
    wide = {
        name: value.float() if value.itemsize == 1 else value for name, value in numbers.items()
    }
    check_finite(wide, what=what)


def _ending(names: Iterable[str], ends: tuple[str, ...]) -> list[tuple[str, str]]:
    """The names that have one of these ends, each with its own."""
    return [(name, end) for name in names for end in ends if name.endswith(end)]


def _refuse_packed(tensors: Mapping[str, Tensor], what: str) -> None:
    for name in tensors:
        kind = next((form for mark, form in _PACKED.items() if mark in name), None)
        if kind is not None:
            raise _unsupported(what, f"are packed by {kind}; the first such tensor is {name}")
    for name, value in tensors.items():
        if not value.is_floating_point() and not name.endswith(_FORMAT):
            dtype = str(value.dtype).removeprefix("torch.")
            raise _unsupported(what, f"hold codes of the type {dtype}; the first are {name}")


def _check_format(what: str, name: str, value: Tensor, *, scaled: bool) -> None:
    """What a layer's own note says of it must be FP8, and its scale be there."""
    try:
        note = json.loads(bytes(value.flatten().tolist()))
        form = note.get("format")
    except (ValueError, TypeError, AttributeError, RecursionError):
        form = None
    if form not in ("float8_e4m3fn", "float8_e5m2") or not scaled:
        raise _unsupported(what, f"hold a layer of the format {form}, said by {name}")


def _check_codes(tensors: Mapping[str, Tensor], layers: Mapping[str, str], what: str) -> None:
    """Plain FP8 is its own number; beside scaled ones, a matrix without its scale lacks it."""
    if not layers and _MARK not in tensors:
        return
    bare = [
        name
        for name, value in tensors.items()
        if value.itemsize == 1 and value.ndim > 1 and name.endswith(".weight")
        if name.removesuffix(".weight") not in layers
    ]
    if bare:
        raise _unsupported(what, f"hold FP8 codes without their scale, the first {bare[0]}")


def _scaled(weight: Tensor, scale: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """A weight [out,...] times its scale: one number, or one a row, [out] or [out,1]."""
    rows, ones = weight.shape[:1], (1,) * (weight.ndim - 1)
    if scale.numel() == 1:
        factor = scale.reshape(())
    elif weight.ndim > 1 and scale.shape in (rows, (*rows, 1)):
        factor = scale.reshape(-1, *ones)
    else:
        shapes = f"{tuple(scale.shape)} for a weight of {tuple(weight.shape)}"
        raise _unsupported(what, f"of the shape {shapes}")
    return (weight.float() * factor.float()).to(dtype)


def _unsupported(what: str, found: str) -> UnsupportedWeights:
    return UnsupportedWeights(
        f"{what} {found}",
        expected="floating-point weights, or FP8 codes with one scale a tensor or a row",
        fix="pass the weights that these were made from, as .safetensors or a diffusers folder; "
        "a precision of fp8 or int8 quantises them in the build",
    )
