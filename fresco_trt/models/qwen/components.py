"""What surrounds a Qwen-Image transformer: where its parts are, its decoder and its encoder.

All of it is read from a diffusers pipeline folder (in a bundle, or outside it); the transformer's
own weights are not touched. The transformer itself runs as engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions, WeightsNotFound, error_context
from fresco_trt.models.drivers import PLAIN, SHIFTED
from fresco_trt.models.finite import require_finite
from fresco_trt.models.flux.components import around, using
from fresco_trt.models.flux.folder import check_files, stored
from fresco_trt.models.flux.parts import PASS_FOLDER, check_vocabulary, load_tokenizer
from fresco_trt.models.qwen.config import COMPONENTS, REPOSITORIES
from fresco_trt.models.qwen.parts import check_encoder, load_codec
from fresco_trt.models.qwen.prompts import PIPELINES, kind_of
from fresco_trt.models.weights import bundled_folder, weights_digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from fresco_trt.plan.facts import ModelFacts

_WHOLE = "a diffusers pipeline folder with " + ", ".join(COMPONENTS)
_VAE = "the vae of the pipeline folder"


# --- where they are ---------------------------------------------------------------------------


def find_pipeline(weights: str | None, model: str) -> Path:
    """The diffusers pipeline folder with the prompt encoder and decoder of `model`: around
    `weights`, or from the hub. Raises WeightsNotFound, which lists the places looked at.
    """
    given = [] if weights in (None, "random") else around(Path(str(weights)).expanduser())
    looked = [*given, bundled_folder(model)]
    for folder in looked:
        absent = [part for part in COMPONENTS if not (folder / part).exists()]
        if not absent:
            return folder
        if "model_index.json" not in absent:
            raise WeightsNotFound(
                f"the pipeline folder {folder} lacks {', '.join(absent)}",
                expected=_WHOLE,
                fix="complete the folder, or pass --weights from one that is complete",
            )
    return _from_hub(model, looked)


def _from_hub(model: str, looked: list[Path]) -> Path:
    from huggingface_hub import snapshot_download

    repository = REPOSITORIES[model]
    try:
        patterns = [pattern for part in COMPONENTS for pattern in (part, f"{part}/*")]
        return Path(snapshot_download(repository, allow_patterns=patterns, etag_timeout=5))
    except Exception as error:  # the hub client raises its own, its HTTP client's and OS errors
        raise WeightsNotFound(
            f"no prompt encoder for {model} (looked at {', '.join(map(str, looked))}; the hub "
            f"({repository}))",
            expected=_WHOLE,
            fix=PASS_FOLDER,
        ) from error


def find_vae(weights: str | None, model: str) -> Path:
    """The pipeline folder whose `vae` is that of `model`, around `weights`; nothing is fetched.
    Raises WeightsNotFound.
    """
    looked = [bundled_folder(model)] if weights is None else around(Path(weights).expanduser())
    for folder in looked:
        if (folder / "vae" / "config.json").is_file():
            return folder
    raise WeightsNotFound(
        f"no VAE for {model} (looked at {', '.join(map(str, looked))})",
        expected="a diffusers pipeline folder with vae/config.json and its weights",
        fix=PASS_FOLDER,
    )


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
        tokenizer = load_tokenizer(folder / "tokenizer", fix=PASS_FOLDER)
        encoder = check_encoder(folder / "text_encoder", fix=PASS_FOLDER)
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
