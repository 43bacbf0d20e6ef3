"""Prompt encoder, tokenizer and decoder of Qwen-Image as their own libraries build them, whole or
not at all.

Between a pipeline folder and :mod:`fresco_trt.models.qwen.components`. As for FLUX, an encoder is
given its configuration and its tensors, read here, and no path; what a library reports of the names
is an error. The picture's processor needs nothing but numbers, and has no file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.models.checkpoint import (
    ENCODER_NAME,
    WEIGHTS_NAME,
    read_stand_ins,
    read_weights,
)
from fresco_trt.models.flux.folder import stored
from fresco_trt.models.flux.parts import (
    REBUILD,
    check_tensors,
    loading,
    refuse_elsewhere,
    require_exact,
)
from fresco_trt.models.flux.settings import checked
from fresco_trt.models.quiet import no_bar, no_report
from fresco_trt.models.qwen.settings import CodecSettings, EncoderSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def load_encoder(folder: Path, *, fix: str = REBUILD) -> Any:
    """The Qwen2.5-VL in ``folder`` in float32, for inference.

    Raises WeightsNotFound for a part that cannot be loaded or lacks a tensor, UnsupportedWeights
    for tensors too many or of other shapes and for settings that are not read.
    """
    with loading(folder, fix=fix):
        tensors = read_weights(folder, ENCODER_NAME)
    return _encoder(folder, tensors, fix).eval().requires_grad_(False)


def check_encoder(folder: Path, *, fix: str = REBUILD) -> Any:
    """The encoder over zeros: its names and shapes tell whether it is one. Raises as
    :func:`load_encoder`.
    """
    with loading(folder, fix=fix):
        tensors = read_stand_ins(folder, ENCODER_NAME)
    return _encoder(folder, tensors, fix)


def _encoder(folder: Path, tensors: Mapping[str, Tensor], fix: str) -> Any:
    import torch
    import transformers

    untyped: Any = transformers
    kind = untyped.Qwen2_5_VLForConditionalGeneration
    with loading(folder, fix=fix), no_bar(), no_report():
        refuse_elsewhere(folder / "config.json", fix)
        told = stored(folder / "config.json")
        settings = checked(EncoderSettings, told, str(folder), fix=fix)
        check_tensors(told, tensors, folder, fix)
        model, report = kind.from_pretrained(
            None,
            config=untyped.Qwen2_5_VLConfig(**settings.given()),
            state_dict=tensors,
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
    require_exact(folder, report, fix)
    return model


def load_codec(folder: Path, *, fix: str = REBUILD) -> Any:
    """The AutoencoderKLQwenImage of a `vae` folder in float32, for inference; raises as
    :func:`load_encoder`.
    """
    import torch
    from diffusers import AutoencoderKLQwenImage

    untyped: Any = AutoencoderKLQwenImage
    with loading(folder, fix=fix), no_report():
        told = stored(folder / "config.json")
        settings = checked(CodecSettings, told, str(folder), fix=fix)
        # diffusers believes an index: it would make up what the index says and a file lacks.
        check_tensors(told, read_stand_ins(folder, WEIGHTS_NAME), folder, fix)
        vae, report = untyped.from_pretrained(
            folder,
            **settings.given(),  # in the place of whatever else is in the file
            torch_dtype=torch.float32,
            local_files_only=True,
            low_cpu_mem_usage=False,  # otherwise it recommends a package that it lacks
            ignore_mismatched_sizes=True,  # they are in the report
            use_safetensors=True,
            output_loading_info=True,
        )
    require_exact(folder, report, fix)
    return vae.eval().requires_grad_(False)
