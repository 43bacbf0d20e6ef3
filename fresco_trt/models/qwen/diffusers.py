"""diffusers' Qwen-Image pipelines, driven from outside: their encoders, their noise, their decoder.

QwenImagePipeline draws from a text, the others edit a picture. Under the part of ``pipelines/``
that enables a pipeline. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.drivers import (
    HONOURED,
    PipelineDriver,
    check_latents,
    in_colour,
    no_picture,
    no_source,
    off_grid,
    one_or_more,
)
from fresco_trt.models.driving import SourcePictures
from fresco_trt.models.packing import unpack
from fresco_trt.models.qwen.config import TRANSFORMER
from fresco_trt.models.qwen.signatures import MASK

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.models.driving import Branches
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

_PIXELS = 1024 * 1024  # of a source as the VAE sees it, about (diffusers' own number)


def _is_guided(values: Mapping[str, Any]) -> bool:
    """Whether diffusers would run the transformer without the prompt as well."""
    has = any(values[name] is not None for name in ("negative_prompt", "negative_prompt_embeds"))
    return has and bool(values["true_cfg_scale"] > 1)


def _count(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, list) else 1


class QwenDriver(PipelineDriver):
    """A :class:`~fresco_trt.models.driving.DiffusersDriver`."""

    pipeline = "QwenImagePipeline"
    transformer = TRANSFORMER
    base = None
    attention_kwargs = "attention_kwargs"
    calls_blocks = False
    honoured = HONOURED | {
        "attention_kwargs",
        "negative_prompt_embeds_mask",
        "num_images_per_prompt",
        "prompt_embeds_mask",
    }
    refused = MappingProxyType({"sigmas": "nothing: the stage plan decides every noise level"})

    def encoded(
        self,
        pipe: Any,
        values: Mapping[str, Any],
        source: SourcePictures | None,
        text_tokens: int | None,
    ) -> tuple[Branches, torch.dtype]:
        """``text`` [B,T,D] and ``text_mask`` [B,T]."""
        seen = {} if source is None else {"image": source.seen}

        def encode(prefix: str) -> tuple[Tensor, Tensor | None]:
            names = ("prompt", "prompt_embeds", "prompt_embeds_mask")
            text, mask = pipe.encode_prompt(
                **{name: values[f"{prefix}{name}"] for name in names},
                **seen,
                device=pipe._execution_device,
                num_images_per_prompt=values["num_images_per_prompt"],
                max_sequence_length=values["max_sequence_length"],
            )
            return text, mask

        branches = [encode(prefix) for prefix in ("", "negative_")[: 1 + _is_guided(values)]]
        needed = max(text.shape[1] for text, _ in branches)
        if text_tokens is not None and needed > text_tokens:
            raise IncompatibleOptions(
                f"a text of {needed} tokens, those of a picture among them, with engines for "
                f"{text_tokens}",
                expected=f"at most {text_tokens}",
                fix="pass a shorter prompt, or enable the pipeline without engines",
            )
        given, *others = (_padded(text, mask, text_tokens or needed) for text, mask in branches)
        return (given, others[0] if others else None), branches[0][0].dtype

    def prompt_tokens(self, pipe: Any, values: Mapping[str, Any], text_tokens: int) -> int | None:
        """As in the protocol: not known, for no plan cuts a text whose padding is masked."""
        return None

    def start(
        self, pipe: Any, facts: ModelFacts, plan: StagePlan, given: Mapping[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As in the protocol."""
        grid, (width, height) = plan.stages[-1].grid, plan.size[:2]
        check_latents(given["latents"], (given["pictures"], grid.tokens, facts.in_channels))
        tokens = pipe.prepare_latents(
            *self._in_front(given["source"]),
            given["pictures"],
            facts.latent_channels,
            height,
            width,
            given["dtype"],
            pipe._execution_device,
            given["generator"],
            given["latents"],
        )
        noise, *behind = tokens if isinstance(tokens, tuple) else (tokens,)
        # On the CPU, where halving gives the same coarse levels whatever the device.
        return unpack(noise.float().cpu(), grid.rows, grid.columns), tuple(
            unpack(each.float(), grid.rows, grid.columns) for each in behind
        )

    def _in_front(self, source: SourcePictures | None) -> tuple[Any, ...]:
        """What ``prepare_latents`` takes before the number of pictures: here nothing."""
        return ()

    def features(self, pipe: Any, latents: Tensor) -> tuple[Tensor, ...]:
        """As in the protocol."""
        from fresco_trt.models.qwen.components import decoder_features

        return decoder_features(pipe.vae, _of_the_vae(pipe, latents), "the pipeline's vae")

    def pixels(self, pipe: Any, plan: StagePlan, tokens: Tensor) -> Tensor:
        """As in the protocol."""
        width, height = plan.size[:2]
        latents = pipe._unpack_latents(tokens, height, width, pipe.vae_scale_factor)
        known = _of_the_vae(pipe, latents[:, :, 0])
        found: Tensor = pipe.vae.decode(known, return_dict=False)[0][:, :, 0]
        return found

    def wrapped(self, pictures: Any) -> Any:
        """A QwenImagePipelineOutput."""
        from diffusers.pipelines.qwenimage.pipeline_output import QwenImagePipelineOutput

        return QwenImagePipelineOutput(images=pictures)


class QwenEditDriver(QwenDriver):
    """Of the pipeline that edits: the prompt encoder sees the source as well, and both the source
    and, unless asked otherwise, the picture have a megapixel in the source's proportions.
    """

    pipeline = "QwenImageEditPipeline"
    references = 1
    honoured = QwenDriver.honoured | {"image"}

    def size(self, pipe: Any, values: Mapping[str, Any]) -> tuple[float, float]:
        """As in the protocol."""
        width, height = self._source_size(self._sources(values))
        return values["width"] or width, values["height"] or height

    def check(self, pipe: Any, values: Mapping[str, Any]) -> None:
        """As in the protocol; and a source for each prompt, which the encoder wants beside it."""
        super().check(pipe, values)
        count = len(self._sources(values))
        for name in ("prompt", "negative_prompt")[: 1 + _is_guided(values)]:
            given = values[name]
            if given is not None and _count(given) != count:
                raise IncompatibleOptions(
                    f"{count} of image for {_count(given)} of {name}",
                    expected="one for each: the prompt encoder sees both",
                    fix=f"pass as many pictures as {name} has texts, in a list",
                )

    def source(self, pipe: Any, values: Mapping[str, Any]) -> SourcePictures:
        """As in the protocol: pictures at the size that diffusers computes of the first."""
        width, height = self._source_size(self._sources(values))
        cell = 2 * pipe.vae_scale_factor
        wanted = tuple(int(values[name]) // cell * cell for name in ("width", "height"))
        if (width, height) != wanted:
            fix = f"pass {self.sized(width, height)}"
            if min(wanted) > 0 and self._source_size_of(wanted) == wanted:
                fix += f", or image.resize({wanted})"
            raise off_grid((width, height), (wanted[0], wanted[1]), fix)
        return self._prepared(pipe, values["image"], (width, height))

    def _prepared(self, pipe: Any, image: Any, size: tuple[int, int]) -> SourcePictures:
        # As diffusers: of a list the encoder sees the pictures as they are.
        seen = pipe.image_processor.resize(image, size[1], size[0])
        pixels = pipe.image_processor.preprocess(seen, size[1], size[0])
        return SourcePictures(pixels=in_colour(pixels), seen=seen)

    def _sources(self, values: Mapping[str, Any]) -> list[Any]:
        """The pictures of a call. Raises IncompatibleOptions and InvalidArgument."""
        if values["image"] is None:
            raise no_source(self.pipeline)
        images = one_or_more(values["image"])
        if images is None:
            raise no_picture(values["image"], "a picture of PIL, or a list of them")
        return images

    def _source_size(self, images: Sequence[Any]) -> tuple[int, int]:
        return self._source_size_of(images[0].size)

    def _source_size_of(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Width and height that diffusers brings a source of ``size`` to."""
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit

        untyped: Any = edit
        width, height, *_ = untyped.calculate_dimensions(_PIXELS, size[0] / size[1])
        return int(width), int(height)

    def _in_front(self, source: SourcePictures | None) -> tuple[Any, ...]:
        return () if source is None else (source.pixels[:, :, None],)


class QwenEditPlusDriver(QwenEditDriver):
    """Of the pipeline whose prompt encoder sees a smaller copy of the source; a list has several
    sources of one picture, and engines take one.
    """

    pipeline = "QwenImageEditPlusPipeline"

    def _sources(self, values: Mapping[str, Any]) -> list[Any]:
        images = super()._sources(values)
        if len(images) > 1:
            raise IncompatibleOptions(
                f"{len(images)} source pictures",
                expected="one: the stage graphs have tokens of one beside those of the picture",
                fix="pass one, or call fresco_trt.disable(pipe) first",
            )
        return images

    def check(self, pipe: Any, values: Mapping[str, Any]) -> None:
        """As in the protocol; and one prompt, as the pipeline itself wants."""
        super().check(pipe, values)
        embeds = values["prompt_embeds"]
        count = _count(values["prompt"]) if embeds is None else len(embeds)
        if count > 1:
            raise ValueError(f"{self.pipeline} takes one prompt a call, not {count}")

    def _prepared(self, pipe: Any, image: Any, size: tuple[int, int]) -> SourcePictures:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

        untyped: Any = plus
        only = image[0] if isinstance(image, list) else image
        ratio = only.size[0] / only.size[1]
        width, height = untyped.calculate_dimensions(untyped.CONDITION_IMAGE_SIZE, ratio)
        seen = pipe.image_processor.resize(only, height, width)
        pixels = pipe.image_processor.preprocess(only, size[1], size[0])
        return SourcePictures(pixels=in_colour(pixels), seen=[seen])

    def _source_size_of(self, size: tuple[int, ...]) -> tuple[int, int]:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

        untyped: Any = plus
        width, height = untyped.calculate_dimensions(untyped.VAE_IMAGE_SIZE, size[0] / size[1])
        return int(width), int(height)


def _padded(text: Tensor, mask: Tensor | None, length: int) -> dict[str, Tensor]:
    """A branch's text [B,T,D] with its mask [B,T], float32, of ``length`` tokens."""
    import torch
    from torch.nn.functional import pad

    own = torch.ones(text.shape[:2], device=text.device) if mask is None else mask.float()
    left = length - text.shape[1]
    return {"text": pad(text.float(), (0, 0, 0, left)), MASK: pad(own, (0, left))}


def _of_the_vae(pipe: Any, latents: Tensor) -> Tensor:
    """Normalised latents [B,C,h,w] as the pipeline's VAE knows them, with a frame, and where it
    runs.
    """
    import torch
    from diffusers.utils.torch_utils import get_module_execution_device

    vae = pipe.vae
    latents = latents.to(get_module_execution_device(vae), vae.dtype)[:, :, None]
    mean, std = (
        torch.tensor(each).view(1, -1, 1, 1, 1).to(latents)
        for each in (vae.config.latents_mean, vae.config.latents_std)
    )
    # As the pipeline itself multiplies, to the last bit.
    known: Tensor = latents / (1.0 / std) + mean
    return known
