"""diffusers' FluxPipeline, driven from outside: its encoders, its noise and its decoder.

Under the part of ``pipelines/`` that enables a pipeline. Importing this file imports no torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.flux.config import TRANSFORMER
from fresco_trt.models.flux.tokens import own_tokens, unpack
from fresco_trt.plan.schedule import ShiftRule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

# Every setting of the scheduler, with diffusers' own default. Those of the second table shift the
# sigmas, and plans have them; the others have to be as they are here.
PLAIN: Mapping[str, object] = {
    "num_train_timesteps": 1000,
    "shift_terminal": None,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "time_shift_type": "exponential",
    "stochastic_sampling": False,
}
SHIFTED: Mapping[str, object] = {
    "use_dynamic_shifting": False,
    "shift": 1.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def _is_guided(values: Mapping[str, Any]) -> bool:
    """Whether diffusers would run the transformer without the prompt as well."""
    embeds = (values["negative_prompt_embeds"], values["negative_pooled_prompt_embeds"])
    has = values["negative_prompt"] is not None or all(each is not None for each in embeds)
    return has and bool(values["true_cfg_scale"] > 1)


def _floats(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in inputs.items()}


class FluxDriver:
    """A :class:`~fresco_trt.models.family.DiffusersDriver`."""

    pipeline = "FluxPipeline"
    transformer = TRANSFORMER
    scheduler = "FlowMatchEulerDiscreteScheduler"
    uncalled = ("pos_embed",)
    honoured = frozenset(
        {
            "callback_on_step_end",
            "callback_on_step_end_tensor_inputs",
            "generator",
            "guidance_scale",
            "height",
            "joint_attention_kwargs",
            "latents",
            "max_sequence_length",
            "negative_pooled_prompt_embeds",
            "negative_prompt",
            "negative_prompt_2",
            "negative_prompt_embeds",
            "num_images_per_prompt",
            "num_inference_steps",
            "output_type",
            "pooled_prompt_embeds",
            "prompt",
            "prompt_2",
            "prompt_embeds",
            "return_dict",
            "true_cfg_scale",
            "width",
        }
    )
    refused = MappingProxyType(
        {
            "sigmas": "nothing: the stage plan decides every noise level",
            "ip_adapter_image": "nothing: the stage graphs attend to text and latents alone",
            "ip_adapter_image_embeds": "nothing: the stage graphs attend to text and latents alone",
        }
    )
    callback_tensors = MappingProxyType({"prompt_embeds": "text"})

    def scheduled(self, facts: ModelFacts, settings: Mapping[str, Any]) -> ModelFacts:
        """As in the protocol: a fixed shift, or the rule of one that grows with the picture."""
        given = {name: value for name, value in settings.items() if not name.startswith("_")}
        for name, value in given.items():
            if name not in SHIFTED and (name not in PLAIN or value != PLAIN[name]):
                plain = repr(PLAIN[name]) if name in PLAIN else "nothing of that name"
                raise _unplanned(f"{name}={value!r}", plain)
        values = {**SHIFTED, **given}
        if not values["use_dynamic_shifting"]:
            (factor,) = _numbers(values, "shift")
            if factor <= 0.0:
                raise _unplanned(f"shift={factor!r}", "a factor above 0")
            return replace(facts, shift=None, fixed_shift=float(factor))
        low, high, base, most = _numbers(
            values, "base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"
        )
        if not 0 < low < high:
            told = f"base_image_seq_len={low!r} and max_image_seq_len={high!r}"
            raise _unplanned(told, "two numbers of tokens, the first below the second")
        rule = ShiftRule(base_shift=base, max_shift=most, base_tokens=low, max_tokens=high)
        return replace(facts, shift=rule, fixed_shift=1.0)

    def check(self, pipe: Any, values: Mapping[str, Any]) -> None:
        """As in the protocol: the pipeline's own check, and the one that it makes later."""
        taken = inspect.signature(pipe.check_inputs).parameters
        pipe.check_inputs(**{name: values[name] for name in taken})
        given = [values[name] for name in ("prompt_embeds", "negative_prompt_embeds")]
        shapes = {tuple(each.shape) for each in given if each is not None}
        if _is_guided(values) and len(shapes) > 1:
            first, second = (tuple(each.shape) for each in given)
            raise ValueError(
                "`prompt_embeds` and `negative_prompt_embeds` must have the same shape when passed"
                f" directly, but they have {first} and {second}"
            )

    def encoded(
        self, pipe: Any, values: Mapping[str, Any], text_tokens: int
    ) -> tuple[tuple[dict[str, Tensor], dict[str, Tensor] | None], torch.dtype]:
        """``text`` [B,T,D] and ``pooled`` [B,P]."""
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
        negative = encode("negative_") if _is_guided(values) else None
        branches = _floats(given), None if negative is None else _floats(negative)
        return branches, given["text"].dtype

    def prompt_tokens(self, pipe: Any, values: Mapping[str, Any], text_tokens: int) -> int | None:
        """As in the protocol, of the second encoder, whose tokens are the text."""
        prompts: list[str] = []
        for prefix in ("", "negative_") if _is_guided(values) else ("",):
            if values[f"{prefix}prompt_embeds"] is not None:
                return None
            given = values[f"{prefix}prompt_2"] or values[f"{prefix}prompt"]
            prompts += given if isinstance(given, list) else [given]
        # As encode_prompt does: a textual inversion is several tokens of its own.
        prompts = pipe.maybe_convert_prompt(prompts, pipe.tokenizer_2)
        return own_tokens(pipe.tokenizer_2, prompts, text_tokens)

    def noise(
        self, pipe: Any, facts: ModelFacts, plan: StagePlan, given: Mapping[str, Any]
    ) -> Tensor:
        """float32 [B,C,H,W]."""
        grid, latents, pictures = plan.stages[-1].grid, given["latents"], given["pictures"]
        shape = (pictures, grid.tokens, facts.in_channels)
        if latents is not None and tuple(latents.shape) != shape:
            raise IncompatibleOptions(
                f"latents of the shape {tuple(latents.shape)}",
                expected=f"{shape}, packed noise of the full size",
                fix="leave latents out, or pass what prepare_latents gives for this size",
            )
        width, height = plan.size[:2]
        tokens, _ = pipe.prepare_latents(
            pictures,
            facts.latent_channels,
            height,
            width,
            given["dtype"],
            pipe._execution_device,
            given["generator"],
            latents,
        )
        # On the CPU, where halving gives the same coarse levels whatever the device.
        return unpack(tokens.float().cpu(), grid.rows, grid.columns)

    def output(self, pipe: Any, plan: StagePlan, tokens: Tensor, output_type: str) -> Any:
        """As in the protocol; latents as diffusers returns them, packed."""
        from diffusers.utils.torch_utils import get_module_execution_device

        if output_type == "latent":
            return tokens.to(pipe._execution_device)
        width, height = plan.size[:2]
        config = pipe.vae.config
        latents = pipe._unpack_latents(tokens, height, width, pipe.vae_scale_factor)
        latents = latents / config.scaling_factor + config.shift_factor
        latents = latents.to(get_module_execution_device(pipe.vae))
        pixels = pipe.vae.decode(latents, return_dict=False)[0]
        return pipe.image_processor.postprocess(pixels, output_type=output_type)

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

    def wrapped(self, pictures: Any) -> Any:
        """A FluxPipelineOutput."""
        from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

        return FluxPipelineOutput(images=pictures)


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
