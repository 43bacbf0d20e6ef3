"""What driving any of diffusers' pipelines shares: schedulers, sizes and source pictures.

Under the drivers of the families (:mod:`fresco_trt.models.driving`). Importing this file imports no
torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions, InvalidArgument
from fresco_trt.plan.schedule import ShiftRule

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.models.driving import SourcePictures
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.grid import Grid

PLAIN: Mapping[str, object] = {
    "num_train_timesteps": 1000,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "time_shift_type": "exponential",
    "stochastic_sampling": False,
}
"""Settings of the scheduler that have to be as they are here, with diffusers' own default."""

SHIFTED: Mapping[str, object] = {
    "use_dynamic_shifting": False,
    "shift": 1.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift_terminal": None,
}
"""Those that shift the sigmas, and that plans have: together they are all that there are."""

HONOURED = frozenset(
    {
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "generator",
        "guidance_scale",
        "height",
        "latents",
        "max_sequence_length",
        "negative_prompt",
        "negative_prompt_embeds",
        "num_inference_steps",
        "output_type",
        "prompt",
        "prompt_embeds",
        "return_dict",
        "true_cfg_scale",
        "width",
    }
)
"""Arguments that every pipeline here has, and a stage plan honours."""


class PipelineDriver:
    """What driving any of these pipelines shares: part of a :class:`DiffusersDriver`."""

    scheduler = "FlowMatchEulerDiscreteScheduler"
    references = 0
    uncalled: tuple[str, ...] = ("pos_embed",)
    callback_tensors = MappingProxyType({"prompt_embeds": "text"})
    packs = True
    per_prompt = "num_images_per_prompt"

    def scheduled(self, facts: ModelFacts, settings: Mapping[str, Any]) -> ModelFacts:
        """As in the protocol: a fixed shift, or the rule of one that grows with the picture."""
        given = {name: value for name, value in settings.items() if not name.startswith("_")}
        for name, value in given.items():
            if name not in SHIFTED and (name not in PLAIN or value != PLAIN[name]):
                plain = repr(PLAIN[name]) if name in PLAIN else "nothing of that name"
                raise _unplanned(f"{name}={value!r}", plain)
        values = {**SHIFTED, **given}
        terminal = values["shift_terminal"] or 0.0
        if not values["use_dynamic_shifting"]:
            (factor,) = _numbers(values, "shift")
            if factor <= 0.0:
                raise _unplanned(f"shift={factor!r}", "a factor above 0")
            if terminal:
                raise _unplanned(f"shift_terminal={terminal!r} of a fixed shift", "None")
            return replace(facts, shift=None, fixed_shift=float(factor))
        low, high, base, most = _numbers(
            values, "base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"
        )
        if not 0 < low < high:
            told = f"base_image_seq_len={low!r} and max_image_seq_len={high!r}"
            raise _unplanned(told, "two numbers of tokens, the first below the second")
        if not isinstance(terminal, int | float) or not 0 <= terminal < 1:
            raise _unplanned(f"shift_terminal={terminal!r}", "None, or a sigma from 0 to 1")
        rule = ShiftRule(
            base_shift=base,
            max_shift=most,
            base_tokens=low,
            max_tokens=high,
            terminal=float(terminal),
        )
        return replace(facts, shift=rule, fixed_shift=1.0)

    def vae_scale(self, pipe: Any) -> int:
        """As in the protocol."""
        scale: int = pipe.vae_scale_factor
        return scale

    def size(self, pipe: Any, values: Mapping[str, Any]) -> tuple[float, float]:
        """As in the protocol: the pipeline's default for a side that was left out."""
        side = pipe.default_sample_size * pipe.vae_scale_factor
        return values["width"] or side, values["height"] or side

    def sized(self, width: int, height: int, frames: int = 1) -> str:
        """As in the protocol: of a picture."""
        return f"width={width}, height={height}"

    def check(self, pipe: Any, values: Mapping[str, Any]) -> None:
        """As in the protocol: by the pipeline's own check."""
        taken = inspect.signature(pipe.check_inputs).parameters
        pipe.check_inputs(**{name: values[name] for name in taken})

    def source(self, pipe: Any, values: Mapping[str, Any]) -> SourcePictures | None:
        """As in the protocol: none."""
        return None

    @contextmanager
    def adapters_scaled(self, pipe: Any, scale: float) -> Iterator[None]:
        """As in the protocol."""
        from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers

        if not USE_PEFT_BACKEND:  # there are no such layers then
            yield
            return
        scale_lora_layers(pipe.transformer, scale)
        try:
            yield
        finally:
            unscale_lora_layers(pipe.transformer, scale)

    def shown(self, tokens: Tensor, grid: Grid) -> Tensor:
        """As in the protocol: the tokens."""
        return tokens

    def packed(self, latents: Tensor) -> Tensor:
        """As in the protocol: tokens already."""
        return latents

    def finished(self, pipe: Any, pixels: Tensor, output_type: str) -> Any:
        """As in the protocol."""
        return pipe.image_processor.postprocess(pixels, output_type=output_type)


def is_guided(values: Mapping[str, Any]) -> bool:
    """Whether a pipeline with pooled text would run the transformer without the prompt as well."""
    embeds = (values["negative_prompt_embeds"], values["negative_pooled_prompt_embeds"])
    has = values["negative_prompt"] is not None or all(each is not None for each in embeds)
    return has and bool(values["true_cfg_scale"] > 1)


def check_latents(latents: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raise IncompatibleOptions for noise of another shape than ``shape``."""
    if latents is not None and tuple(latents.shape) != shape:
        raise IncompatibleOptions(
            f"latents of the shape {tuple(latents.shape)}",
            expected=f"{shape}, noise of the full size",
            fix="leave latents out, or pass what prepare_latents gives for this size",
        )


# --- source pictures --------------------------------------------------------------------------


def is_picture(image: Any) -> bool:
    """Whether an image is one of PIL."""
    from PIL.Image import Image

    return isinstance(image, Image)


def one_or_more(image: Any) -> list[Any] | None:
    """Pictures of PIL, one or a list of them; None for anything else."""
    each = image if isinstance(image, list) else [image]
    return each if each and all(map(is_picture, each)) else None


def no_source(pipeline: str) -> IncompatibleOptions:
    """What an edit without a source is refused with."""
    return IncompatibleOptions(
        f"no image in a call of an enabled {pipeline}",
        expected="the picture to edit: its tokens stand beside those of the new one",
        fix="pass image=, or call fresco_trt.disable(pipe) first",
    )


def no_picture(image: Any, expected: str) -> InvalidArgument:
    """What anything but a picture is refused with."""
    kind = type(image[0] if isinstance(image, list) and image else image).__name__
    among = "a list of " if isinstance(image, list) else ""
    empty = image == [] if isinstance(image, list) else False
    return InvalidArgument(
        "image=[]" if empty else f"image of the type {among}{kind}",
        expected=expected,
        fix="pass such a picture",
    )


def in_colour(pixels: Tensor) -> Tensor:
    """Pixels [b,C,H,W], if they are of three channels. Raises InvalidArgument for others, which a
    VAE would not take.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise InvalidArgument(
            f"an image that the pipeline reads as {list(pixels.shape)}",
            expected="pictures of red, green and blue, [b,3,H,W]",
            fix='pass image.convert("RGB")',
        )
    return pixels


def off_grid(source: tuple[int, int], size: tuple[float, float], fix: str) -> IncompatibleOptions:
    """What a source is refused with that the pipeline brings to another size than the picture's."""
    return IncompatibleOptions(
        f"a source that the pipeline encodes at {source[0]}x{source[1]} for a picture of "
        f"{size[0]:g}x{size[1]:g}",
        expected="both of one size: a stage has them on one grid",
        fix=fix,
    )


def _numbers(values: Mapping[str, Any], *names: str) -> list[Any]:
    for name in names:
        if not isinstance(values[name], int | float) or not math.isfinite(values[name]):
            raise _unplanned(f"{name}={values[name]!r}", "a number")
    return [values[name] for name in names]


def _unplanned(given: str, expected: str) -> IncompatibleOptions:
    return IncompatibleOptions(
        f"a scheduler with {given}",
        expected=f"{expected}: a plan has no more",
        fix="put the model's own scheduler back",
    )
