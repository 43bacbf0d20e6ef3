"""FLUX's prompt encoders and decoder, each of its own library's class.

Between a pipeline folder and :mod:`fresco_trt.models.flux.components`; how they are built says
:mod:`fresco_trt.models.parts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fresco_trt.models.flux.settings import ClipSettings, CodecSettings, T5Settings
from fresco_trt.models.parts import (
    REBUILD,
    check_vocabulary,
    codec_of,
    encoder_of,
    load_tokenizer,
)
from fresco_trt.models.pipeline_folder import PASS_FOLDER
from fresco_trt.models.settings import Settings


def check_parts(folder: Path) -> None:
    """Raise for a pipeline folder from which a bundle could not draw: asked by a build.

    WeightsNotFound for a part that cannot be loaded, lacks a tensor or is another's;
    UnsupportedWeights for tensors too many or of other shapes. Of the encoders no weights are read:
    their names and shapes tell.
    """
    for number in ("", "_2"):
        tokenizer = load_tokenizer(folder / f"tokenizer{number}", fix=PASS_FOLDER)
        encoder = load_encoder(folder / f"text_encoder{number}", fix=PASS_FOLDER, weights=False)
        check_vocabulary(tokenizer, encoder, folder / f"tokenizer{number}", fix=PASS_FOLDER)
    load_codec(folder / "vae", fix=PASS_FOLDER)


def load_encoder(folder: Path, *, fix: str = REBUILD, weights: bool = True) -> Any:
    """The prompt encoder in ``folder``, T5 or CLIP by its name; takes and raises as
    :func:`~fresco_trt.models.parts.encoder_of`.
    """
    from transformers import CLIPTextModel, T5EncoderModel

    kind: Any = T5EncoderModel if folder.name.endswith("_2") else CLIPTextModel
    schema: type[Settings] = T5Settings if kind is T5EncoderModel else ClipSettings
    return encoder_of(folder, kind, schema, fix=fix, weights=weights)


def load_codec(folder: Path, *, fix: str = REBUILD) -> Any:
    """The AutoencoderKL of a `vae` folder, as :func:`~fresco_trt.models.parts.codec_of`."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return codec_of(folder, AutoencoderKL, CodecSettings, fix=fix)
