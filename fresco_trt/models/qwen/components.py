"""What surrounds a Qwen-Image transformer: whether its parts are right, its decoder and encoder.

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
from fresco_trt.models.parts import (
    check_files,
    check_vocabulary,
    load_tokenizer,
    refuse_unread,
    stored,
)
from fresco_trt.models.pipeline_folder import PASS_FOLDER
from fresco_trt.models.qwen.parts import load_codec, load_encoder
from fresco_trt.models.qwen.prompts import PIPELINES, kind_of
from fresco_trt.models.weights import weights_digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from fresco_trt.plan.facts import ModelFacts

_VAE = "the vae of the pipeline folder"


# --- whether they are the right ones ----------------------------------------------------------


def check_folder(folder: Path, facts: ModelFacts) -> None:
    """Raise for a folder of parts that are not this model's, or from which a bundle could not draw.

    IncompatibleOptions for one of another pipeline, a scheduler that shifts the sigmas as no plan
    of the model does, an encoder of another width and a decoder of another scale;
    UnsupportedWeights for parts that are quantised, and for files that nobody would read;
    WeightsNotFound for a part that cannot be loaded.
    """
    with error_context(f"the pipeline folder {folder}"):
        for part in ("text_encoder", "vae"):
            check_files(folder / part)
        for part in ("scheduler", "tokenizer"):
            refuse_unread(folder / part)
        tokenizer = load_tokenizer(folder / "tokenizer", fix=PASS_FOLDER)
        encoder = load_encoder(folder / "text_encoder", fix=PASS_FOLDER, weights=False)
        text = encoder.config.text_config
        check_vocabulary(
            tokenizer, encoder.model.language_model, folder / "tokenizer", fix=PASS_FOLDER
        )
        vae = load_codec(folder / "vae", fix=PASS_FOLDER)
        for problem, expected in _problems(folder, facts, text, vae):
            raise IncompatibleOptions(
                problem, expected=expected, fix="pass the pipeline folder of --model"
            )


def _problems(folder: Path, facts: ModelFacts, text: Any, vae: Any) -> Iterator[tuple[str, str]]:
    kind = kind_of(folder)
    if (kind == PIPELINES[0]) != (facts.references == 0):
        wanted = PIPELINES[1:] if facts.references else PIPELINES[:1]
        yield f"parts of the pipeline {kind}", " or ".join(wanted)
    if text.hidden_size != facts.text_dim:
        yield f"a text_encoder of width {text.hidden_size}", f"{facts.text_dim}"
    if vae.spatial_compression_ratio != facts.vae_scale:
        yield f"a vae that enlarges by {vae.spatial_compression_ratio}", f"{facts.vae_scale}"
    if vae.config.z_dim != facts.latent_channels:
        yield f"a vae with z_dim={vae.config.z_dim}", f"{facts.latent_channels}"
    told = stored(folder / "scheduler" / "scheduler_config.json")
    found = {**PLAIN, **SHIFTED, **told}
    for name, value in scheduler_settings(facts).items():
        if found.get(name) != value:
            yield f"a scheduler with {name}={found.get(name)!r}", f"{value!r}, as plans have"


def scheduler_settings(facts: ModelFacts) -> dict[str, Any]:
    """The settings of the model's own scheduler, all that count."""
    rule = facts.shift
    if rule is None:
        raise ValueError(f"{facts.name} without a rule for its shift; expected one")
    return {
        **PLAIN,
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "shift": 1.0,
        "use_dynamic_shifting": True,
        "base_shift": rule.base_shift,
        "max_shift": rule.max_shift,
        "base_image_seq_len": rule.base_tokens,
        "max_image_seq_len": rule.max_tokens,
        "shift_terminal": rule.terminal or None,
    }


# --- pictures ---------------------------------------------------------------------------------


class _Codec:
    """The pipeline's AutoencoderKLQwenImage, on the CPU in float32. Its latents have a frame, of
    which a picture has one, and each channel a mean and a deviation.
    """

    def __init__(self, folder: Path) -> None:
        import torch

        self._vae = load_codec(folder / "vae")
        config = self._vae.config
        self._mean, self._std = (
            torch.tensor(values).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )


class QwenDecoder(_Codec):
    """Latents to pixels. Raises WeightsNotFound for a folder that diffusers cannot load."""

    def __call__(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Pictures uint8 [B,H,W,3] of normalised latents [B,C,h,w].

        Raises NonFiniteValues where the VAE gives any, ComponentFailed or OutOfDeviceMemory for
        what its library raises.
        """
        import torch

        with torch.no_grad(), using("vae"):
            pictures = self._vae.decode(self._scaled(latents)).sample[:, :, 0]
        require_finite(pictures, _VAE)
        pixels = (pictures / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        array: npt.NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        return array

    def features(self, latents: Tensor) -> tuple[Tensor, ...]:
        """As :func:`decoder_features`, on the CPU. Raises as a call does."""
        with using("vae"):
            return decoder_features(self._vae, self._scaled(latents), _VAE)

    def _scaled(self, latents: Tensor) -> Tensor:
        """As the VAE knows them, with one frame, of normalised ones."""
        scaled: Tensor = latents.cpu()[:, :, None] * self._std + self._mean
        return scaled


def decoder_features(vae: Any, latents: Tensor, name: str) -> tuple[Tensor, ...]:
    """As :func:`fresco_trt.models.flux.components.decoder_features`, of this family's VAE."""
    import torch

    decoder = vae.decoder
    with torch.no_grad():
        first = decoder.conv_in(vae.post_quant_conv(latents))
        middle = decoder.mid_block(first)
        maps = [each[:, :, 0] for each in (first, middle, decoder.up_blocks[0](middle))]
    for each in maps:
        require_finite(each, name)
    return tuple(each.float() for each in maps)


class QwenEncoder(_Codec):
    """Pixels to latents: what :class:`QwenDecoder` undoes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.scaling: tuple[float, ...] = tuple(1 / each for each in self._vae.config.latents_std)
        self.shift: tuple[float, ...] = tuple(self._vae.config.latents_mean)
        self.channels: int = self._vae.config.z_dim
        self.scale: int = self._vae.spatial_compression_ratio

    @property
    def digest(self) -> str:
        """SHA-256 of the VAE's weights, as :func:`~fresco_trt.models.weights.weights_digest`."""
        return weights_digest(self._vae)

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Normalised latents float32 [B,C,h,w] of sRGB pictures uint8 [B,H,W,3].

        The posterior's modes: no draw is involved. Sides must be multiples of ``scale``. Raises
        ComponentFailed or OutOfDeviceMemory for what the VAE's library raises.
        """
        import torch

        pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad(), using("vae"):
            found = self._vae.encode(pictures[:, :, None]).latent_dist.mode()
        normalised: Tensor = ((found - self._mean) / self._std)[:, :, 0]
        return normalised
