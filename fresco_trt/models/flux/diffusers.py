"""diffusers' FLUX pipelines, driven from outside: their encoders, their noise and their decoder.

FluxPipeline draws from a text, FluxKontextPipeline edits a picture. Under the part of
``pipelines/`` that enables a pipeline. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import InvalidArgument
from fresco_trt.models.drivers import (
    HONOURED,
    PipelineDriver,
    check_latents,
    in_colour,
    is_guided,
    no_picture,
    no_source,
    off_grid,
    one_or_more,
)
from fresco_trt.models.driving import SourcePictures
from fresco_trt.models.flux.config import TRANSFORMER
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_KONTEXT
from fresco_trt.models.flux.tokens import own_tokens, unpack

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.models.driving import Branches
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

_NO_ADAPTER = "nothing: the stage graphs attend to text and latents alone"


def _floats(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in inputs.items()}


class FluxDriver(PipelineDriver):
    """A :class:`~fresco_trt.models.driving.DiffusersDriver`."""

    pipeline = "FluxPipeline"
    transformer = TRANSFORMER
    base: str | None = FLUX_DEV.name
    attention_kwargs = "joint_attention_kwargs"
    calls_blocks = True
    honoured = HONOURED | {
        "joint_attention_kwargs",
        "negative_pooled_prompt_embeds",
        "negative_prompt_2",
        "num_images_per_prompt",
        "pooled_prompt_embeds",
        "prompt_2",
    }
    refused = MappingProxyType(
        {
            "sigmas": "nothing: the stage plan decides every noise level",
            "ip_adapter_image": _NO_ADAPTER,
            "ip_adapter_image_embeds": _NO_ADAPTER,
        }
    )

    def check(self, pipe: Any, values: Mapping[str, Any]) -> None:
        """As in the protocol: the pipeline's own check, and the one that it makes later."""
        super().check(pipe, values)
        given = [values[name] for name in ("prompt_embeds", "negative_prompt_embeds")]
        shapes = {tuple(each.shape) for each in given if each is not None}
        if is_guided(values) and len(shapes) > 1:
            first, second = (tuple(each.shape) for each in given)
            raise ValueError(
                "`prompt_embeds` and `negative_prompt_embeds` must have the same shape when passed"
                f" directly, but they have {first} and {second}"
            )

    def encoded(
        self,
        pipe: Any,
        values: Mapping[str, Any],
        source: SourcePictures | None,
        text_tokens: int | None,
    ) -> tuple[Branches, torch.dtype]:
        """``text`` [B,T,D] and ``pooled`` [B,P]; no encoder sees the source."""
        scale = (values["joint_attention_kwargs"] or {}).get("scale")

        def encode(prefix: str) -> dict[str, Tensor]:
            names = ("prompt", "prompt_2", "prompt_embeds", "pooled_prompt_embeds")
            text, pooled, _ = pipe.encode_prompt(
                **{name: values[f"{prefix}{name}"] for name in names},
                device=pipe._execution_device,
                num_images_per_prompt=values["num_images_per_prompt"],
                max_sequence_length=text_tokens,
                lora_scale=scale,
            )
            return {"text": text, "pooled": pooled}

        given = encode("")
        negative = encode("negative_") if is_guided(values) else None
        branches = _floats(given), None if negative is None else _floats(negative)
        return branches, given["text"].dtype

    def prompt_tokens(self, pipe: Any, values: Mapping[str, Any], text_tokens: int) -> int | None:
        """As in the protocol, of the second encoder, whose tokens are the text."""
        prompts: list[str] = []
        for prefix in ("", "negative_") if is_guided(values) else ("",):
            if values[f"{prefix}prompt_embeds"] is not None:
                return None
            given = values[f"{prefix}prompt_2"] or values[f"{prefix}prompt"]
            prompts += given if isinstance(given, list) else [given]
        # As encode_prompt does: a textual inversion is several tokens of its own.
        prompts = pipe.maybe_convert_prompt(prompts, pipe.tokenizer_2)
        return own_tokens(pipe.tokenizer_2, prompts, text_tokens)

    def start(
        self, pipe: Any, facts: ModelFacts, plan: StagePlan, given: Mapping[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As in the protocol."""
        grid = plan.stages[-1].grid
        check_latents(given["latents"], (given["pictures"], grid.tokens, facts.in_channels))
        tokens, *behind = self._prepared(pipe, facts, plan, given)
        # On the CPU, where halving gives the same coarse levels whatever the device.
        noise = unpack(tokens.float().cpu(), grid.rows, grid.columns)
        return noise, tuple(unpack(each.float(), grid.rows, grid.columns) for each in behind)

    def _prepared(
        self, pipe: Any, facts: ModelFacts, plan: StagePlan, given: Mapping[str, Any]
    ) -> tuple[Tensor, ...]:
        """Packed noise, and the packed latents of sources behind it."""
        tokens, _ = pipe.prepare_latents(**_preparing(pipe, facts, plan, given))
        return (tokens,)

    def features(self, pipe: Any, latents: Tensor) -> tuple[Tensor, ...]:
        """As in the protocol."""
        from fresco_trt.models.flux.components import decoder_features

        known = _of_the_vae(pipe, latents).to(pipe.vae.dtype)
        return decoder_features(pipe.vae, known, "the pipeline's vae")

    def pixels(self, pipe: Any, plan: StagePlan, tokens: Tensor) -> Tensor:
        """As in the protocol."""
        width, height = plan.size[:2]
        latents = pipe._unpack_latents(tokens, height, width, pipe.vae_scale_factor)
        found: Tensor = pipe.vae.decode(_of_the_vae(pipe, latents), return_dict=False)[0]
        return found

    def wrapped(self, pictures: Any) -> Any:
        """A FluxPipelineOutput."""
        from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

        return FluxPipelineOutput(images=pictures)


class FluxKontextDriver(FluxDriver):
    """Of the pipeline that edits: its size keeps an area, and its sources a list of sizes."""

    pipeline = "FluxKontextPipeline"
    references = 1
    base = FLUX_KONTEXT.name
    honoured = FluxDriver.honoured | {"image", "max_area", "_auto_resize"}

    def size(self, pipe: Any, values: Mapping[str, Any]) -> tuple[float, float]:
        """As in the protocol: the proportions that were asked for, on ``max_area`` pixels."""
        width, height = super().size(pipe, values)
        area = values["max_area"]
        if area <= 0:
            raise InvalidArgument(
                f"max_area={area}", expected="pixels of a picture, 1 or more", fix="pass a number"
            )
        if width <= 0 or height <= 0:
            return width, height  # which no grid has
        cell, ratio = 2 * pipe.vae_scale_factor, width / height
        sides = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        return sides[0] // cell * cell, sides[1] // cell * cell

    def sized(self, width: int, height: int, frames: int = 1) -> str:
        """As in the protocol."""
        return f"{super().sized(width, height)}, max_area={width * height}"

    def source(self, pipe: Any, values: Mapping[str, Any]) -> SourcePictures:
        """As in the protocol: pictures at the size that is nearest of those the model was trained
        at or, without ``_auto_resize``, at their own; latents as they are.
        """
        import numpy as np
        import torch

        image = values["image"]
        if image is None:
            raise no_source(self.pipeline)
        arrays = isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 4
        if not arrays and one_or_more(image) is None:
            expected = "a picture of PIL or a list of them, or an array or a tensor of 4 dimensions"
            raise no_picture(image, expected)
        wanted = values["width"], values["height"]
        if isinstance(image, torch.Tensor) and image.shape[1] == pipe.latent_channels:
            scale = pipe.vae_scale_factor
            found = image.shape[-1] * scale, image.shape[-2] * scale
            self._check_grid(found, wanted, None)
            return SourcePictures(pixels=image, are_latents=True)
        own = self._own_size(pipe, image)
        width, height = self._trained_size(pipe, own) if values["_auto_resize"] else own
        self._check_grid((width, height), wanted, own if values["_auto_resize"] else None)
        image = pipe.image_processor.resize(image, height, width)
        return SourcePictures(
            pixels=in_colour(pipe.image_processor.preprocess(image, height, width))
        )

    def _own_size(self, pipe: Any, image: Any) -> tuple[int, int]:
        """Width and height of a source in whole tokens."""
        first = image[0] if isinstance(image, list) else image
        height, width = pipe.image_processor.get_default_height_width(first)
        cell = 2 * pipe.vae_scale_factor
        if min(width, height) < cell:
            raise InvalidArgument(
                "an image that is smaller than a token",
                expected=f"{cell} pixels or more a side",
                fix="pass a larger picture",
            )
        return width // cell * cell, height // cell * cell

    def _trained_size(self, pipe: Any, own: tuple[int, int]) -> tuple[int, int]:
        """The size of diffusers' list whose proportions are nearest."""
        from diffusers.pipelines.flux import pipeline_flux_kontext as kontext

        ratio, cell = own[0] / own[1], 2 * pipe.vae_scale_factor
        sizes = kontext.PREFERRED_KONTEXT_RESOLUTIONS
        _, width, height = min((abs(ratio - w / h), w, h) for w, h in sizes)
        return width // cell * cell, height // cell * cell

    def _check_grid(
        self, found: tuple[int, int], wanted: tuple[float, float], own: tuple[int, int] | None
    ) -> None:
        """Raise IncompatibleOptions for a source of another size than the picture, unless ``own``,
        the size it has without ``_auto_resize``, would do.
        """
        if found == wanted:
            return
        fix = f"pass {self.sized(*found)}"
        raise off_grid(found, wanted, "pass _auto_resize=False" if own == wanted else fix)

    def _prepared(
        self, pipe: Any, facts: ModelFacts, plan: StagePlan, given: Mapping[str, Any]
    ) -> tuple[Tensor, ...]:
        preparing = _preparing(pipe, facts, plan, given)
        tokens, source, *_ = pipe.prepare_latents(image=given["source"].pixels, **preparing)
        return tokens, source


def _preparing(
    pipe: Any, facts: ModelFacts, plan: StagePlan, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of ``prepare_latents`` that both pipelines have."""
    width, height = plan.size[:2]
    return {
        "batch_size": given["pictures"],
        "num_channels_latents": facts.latent_channels,
        "height": height,
        "width": width,
        "dtype": given["dtype"],
        "device": pipe._execution_device,
        "generator": given["generator"],
        "latents": given["latents"],
    }


def _of_the_vae(pipe: Any, latents: Tensor) -> Tensor:
    """Normalised latents as the pipeline's VAE knows them, and where it runs."""
    from diffusers.utils.torch_utils import get_module_execution_device

    config = pipe.vae.config
    known: Tensor = latents / config.scaling_factor + config.shift_factor
    return known.to(get_module_execution_device(pipe.vae))
