"""HunyuanVideo's prompt encoders and its VAE, each of its own library's class.

Between a pipeline folder and :mod:`fresco_trt.models.hunyuan.components`; how they are built says
:mod:`fresco_trt.models.parts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fresco_trt.models.flux.settings import ClipSettings
from fresco_trt.models.hunyuan.settings import CodecSettings, LlamaSettings
from fresco_trt.models.parts import REBUILD, codec_of, encoder_of


def load_encoder(folder: Path, *, fix: str = REBUILD, weights: bool = True) -> Any:
    """The prompt encoder in ``folder``, LLaMA or CLIP by its name; takes and raises as
    :func:`~fresco_trt.models.parts.encoder_of`.
    """
    import transformers

    untyped: Any = transformers
    if folder.name.endswith("_2"):
        return encoder_of(folder, untyped.CLIPTextModel, ClipSettings, fix=fix, weights=weights)
    return encoder_of(folder, untyped.LlamaModel, LlamaSettings, fix=fix, weights=weights)


def load_codec(folder: Path, *, fix: str = REBUILD) -> Any:
    """The AutoencoderKLHunyuanVideo of a `vae` folder, as
    :func:`~fresco_trt.models.parts.codec_of`.
    """
    from diffusers import AutoencoderKLHunyuanVideo

    return codec_of(folder, AutoencoderKLHunyuanVideo, CodecSettings, fix=fix)
