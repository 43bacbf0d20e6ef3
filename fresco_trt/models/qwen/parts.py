"""Qwen-Image's prompt encoder and decoder, each of its own library's class.

Between a pipeline folder and :mod:`fresco_trt.models.qwen.components`; how they are built says
:mod:`fresco_trt.models.parts`. The picture's processor needs nothing but numbers, and has no file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fresco_trt.models.parts import REBUILD, codec_of, encoder_of
from fresco_trt.models.qwen.settings import CodecSettings, EncoderSettings


def load_encoder(folder: Path, *, fix: str = REBUILD, weights: bool = True) -> Any:
    """The Qwen2.5-VL in ``folder``; takes and raises as
    :func:`~fresco_trt.models.parts.encoder_of`.
    """
    import transformers

    untyped: Any = transformers
    kind = untyped.Qwen2_5_VLForConditionalGeneration
    return encoder_of(folder, kind, EncoderSettings, fix=fix, weights=weights)


def load_codec(folder: Path, *, fix: str = REBUILD) -> Any:
    """The AutoencoderKLQwenImage of a `vae` folder, as
    :func:`~fresco_trt.models.parts.codec_of`.
    """
    from diffusers import AutoencoderKLQwenImage

    return codec_of(folder, AutoencoderKLQwenImage, CodecSettings, fix=fix)
