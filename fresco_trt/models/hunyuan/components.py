"""What surrounds a HunyuanVideo transformer: whether its parts are right, its decoder and encoder.

All of it is read from a diffusers pipeline folder (in a bundle, or outside it); the transformer's
own weights are not touched. The transformer itself runs as engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions, error_context
from fresco_trt.models.drivers import PLAIN, SHIFTED
from fresco_trt.models.finite import require_finite
from fresco_trt.models.flux.components import using
from fresco_trt.models.hunyuan.parts import load_codec, load_encoder
from fresco_trt.models.parts import (
    check_files,
    check_vocabulary,
    load_tokenizer,
    refuse_unread,
    stored,
)
from fresco_trt.models.pipeline_folder import PASS_FOLDER
from fresco_trt.models.weights import weights_digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from fresco_trt.plan.facts import ModelFacts

PIPELINE = "HunyuanVideoPipeline"

TILED_FROM = 512
"""Pixels along a side, from which more of a clip is decoded in tiles that overlap: at 1280x720 one
layer of the whole would take tens of gigabytes."""


# --- whether they are the right ones ----------------------------------------------------------


def check_folder(folder: Path, facts: ModelFacts) -> None:
    """Raise for a folder of parts that are not this model's, or from which a bundle could not draw.

    IncompatibleOptions for one of another pipeline, a scheduler that shifts the sigmas as no plan
    of the model does, encoders of other widths and a VAE of another scale; UnsupportedWeights for
    parts that are quantised, and for files that nobody would read; WeightsNotFound for a part that
    cannot be loaded.
    """
    with error_context(f"the pipeline folder {folder}"):
        encoders = []
        for number in ("", "_2"):
            check_files(folder / f"text_encoder{number}")
            tokenizer = load_tokenizer(folder / f"tokenizer{number}", fix=PASS_FOLDER)
            source = folder / f"text_encoder{number}"
            encoders.append(load_encoder(source, fix=PASS_FOLDER, weights=False))
            check_vocabulary(
                tokenizer, encoders[-1], folder / f"tokenizer{number}", fix=PASS_FOLDER
            )
            if tokenizer.padding_side != "right":
                raise _other(f"tokenizer{number} pads on the left", "padding on the right")
        check_files(folder / "vae")
        for part in ("scheduler", "tokenizer", "tokenizer_2"):
            refuse_unread(folder / part)
        vae = load_codec(folder / "vae", fix=PASS_FOLDER)
        for problem, expected in _problems(folder, facts, encoders, vae):
            raise _other(problem, expected)


def _other(problem: str, expected: str) -> IncompatibleOptions:
    return IncompatibleOptions(
        problem, expected=expected, fix="pass the pipeline folder of --model"
    )


def _problems(
    folder: Path, facts: ModelFacts, encoders: list[Any], vae: Any
) -> Iterator[tuple[str, str]]:
    kind = stored(folder / "model_index.json").get("_class_name")
    if kind != PIPELINE:
        yield f"parts of the pipeline {str(kind)[:80]}", PIPELINE
    widths = (facts.text_dim, facts.pooled_dim)
    for number, encoder, width in zip(("", "_2"), encoders, widths, strict=True):
        if encoder.config.hidden_size != width:
            yield f"a text_encoder{number} of width {encoder.config.hidden_size}", f"{width}"
    for name, value in (
        ("spatial_compression_ratio", facts.vae_scale),
        ("temporal_compression_ratio", facts.temporal_scale),
        ("latent_channels", facts.latent_channels),
    ):
        if vae.config[name] != value:
            yield f"a vae with {name}={vae.config[name]}", f"{value}"
    told = stored(folder / "scheduler" / "scheduler_config.json")
    found = {**PLAIN, **SHIFTED, **told}
    for name, value in scheduler_settings(facts).items():
        if found.get(name) != value:
            yield f"a scheduler with {name}={found.get(name)!r}", f"{value!r}, as plans have"


def scheduler_settings(facts: ModelFacts) -> dict[str, Any]:
    """The settings of the model's own scheduler, all that count."""
    return {
        **PLAIN,
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "shift": facts.fixed_shift,
        "use_dynamic_shifting": False,
    }


# --- clips ------------------------------------------------------------------------------------


def no_features() -> IncompatibleOptions:
    """What selective edits are refused with."""
    return IncompatibleOptions(
        "selective edits of a HunyuanVideo model",
        expected="a plan without: this family edits nothing",
        fix="leave that option out",
    )


class _Codec:
    """The pipeline's AutoencoderKLHunyuanVideo, on the CPU in float32."""

    def __init__(self, folder: Path) -> None:
        self._vae = load_codec(folder / "vae")
        self.scaling: float = self._vae.config.scaling_factor
        self.scale: int = self._vae.spatial_compression_ratio

    def _tile(self, side: int) -> None:
        """Work in tiles, or not, on what is so many pixels along its longer side."""
        self._vae.use_tiling = side > TILED_FROM


class HunyuanDecoder(_Codec):
    """Latents to frames. Raises WeightsNotFound for a folder that diffusers cannot load."""

    def __call__(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Clips uint8 [B,F,H,W,3] of normalised latents [B,C,f,h,w], or pictures [B,H,W,3] of
        [B,C,h,w].

        A clip is decoded a few frames at a time, and one that is larger than 512 pixels along a
        side in tiles, as diffusers' ``enable_tiling`` does. Raises NonFiniteValues where the VAE
        gives any, ComponentFailed or OutOfDeviceMemory for what its library raises.
        """
        import torch

        clip = latents.cpu() if latents.ndim == 5 else latents.cpu()[:, :, None]
        self._tile(self.scale * max(clip.shape[-2:]))
        with torch.no_grad(), using("vae"):
            found = self._vae.decode(clip / self.scaling).sample
        require_finite(found, "the vae of the pipeline folder")
        pixels = (found / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        array: npt.NDArray[np.uint8] = pixels.permute(0, 2, 3, 4, 1).contiguous().numpy()
        return array if latents.ndim == 5 else array[:, 0]

    def features(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Raises IncompatibleOptions: what an edit touches is seen in pictures."""
        raise no_features()


class HunyuanEncoder(_Codec):
    """Frames to latents: what :class:`HunyuanDecoder` undoes."""

    shift = 0.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.channels: int = self._vae.config.latent_channels

    @property
    def digest(self) -> str:
        """SHA-256 of the VAE's weights, as :func:`~fresco_trt.models.weights.weights_digest`."""
        return weights_digest(self._vae)

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Normalised latents float32 [B,C,f,h,w] of sRGB clips uint8 [B,F,H,W,3], or [B,C,h,w] of
        pictures [B,H,W,3].

        The posterior's modes: no draw is involved. Sides must be multiples of ``scale``, and the
        frames one more than a multiple of 4. Raises ComponentFailed or OutOfDeviceMemory for what
        the VAE's library raises.
        """
        import torch

        clip = torch.from_numpy(pixels if pixels.ndim == 5 else pixels[:, None])
        self._tile(max(clip.shape[2:4]))
        with torch.no_grad(), using("vae"):
            found = self._vae.encode(clip.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
            modes: Tensor = found.latent_dist.mode() * self.scaling
        return modes if pixels.ndim == 5 else modes[:, :, 0]
