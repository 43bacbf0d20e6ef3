"""diffusers' FluxPipeline, driven from outside: its encoders, its noise and its decoder.

Under the part of ``pipelines/`` that enables a pipeline. Importing this file imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.flux.config import TRANSFORMER
from fresco_trt.models.flux.tokens import unpack
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


class FluxDriver:
    """A :class:`~fresco_trt.models.family.DiffusersDriver`."""

    pipeline = "FluxPipeline"
    transformer = TRANSFORMER
    scheduler = "FlowMatchEulerDiscreteScheduler"
    uncalled = ("pos_embed",)
    honoured = frozenset(
        {
            "generator",
            "guidance_scale",
            "height",
            "latents",
            "max_sequence_length",
            "num_inference_steps",
            "output_type",
            "pooled_prompt_embeds",
            "prompt",
            "prompt_2",
            "prompt_embeds",
            "return_dict",
            "width",
        }
    )
    refused = MappingProxyType(
        {
            "sigmas": "nothing: the stage plan decides every noise level",
            "num_images_per_prompt": "1: a request draws one picture",
            "true_cfg_scale": "1: the engines run one prompt, not two",
            "negative_prompt": "nothing: the engines run one prompt, not two",
            "callback_on_step_end": "nothing: the latents of a stage have the size of its own grid",
            "joint_attention_kwargs": "nothing: the engines' attention takes none",
        }
    )

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

    def encoded(
        self, pipe: Any, prompt: Mapping[str, Any], size: tuple[int, int], text_tokens: int
    ) -> tuple[dict[str, Tensor], torch.dtype]:
        """``text`` [1,T,D] and ``pooled`` [1,P]."""
        width, height = size
        embeds = {name: prompt[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
        words = {name: prompt[name] for name in ("prompt", "prompt_2")}
        pipe.check_inputs(
            words["prompt"],
            words["prompt_2"],
            height,
            width,
            **embeds,
            max_sequence_length=text_tokens,
        )
        text, pooled, _ = pipe.encode_prompt(
            **words, device=pipe._execution_device, max_sequence_length=text_tokens, **embeds
        )
        return {"text": text.float(), "pooled": pooled.float()}, text.dtype

    def noise(
        self, pipe: Any, facts: ModelFacts, plan: StagePlan, given: Mapping[str, Any]
    ) -> Tensor:
        """float32 [1,C,H,W]."""
        grid, latents = plan.stages[-1].grid, given["latents"]
        shape = (1, grid.tokens, facts.in_channels)
        if latents is not None and tuple(latents.shape) != shape:
            raise IncompatibleOptions(
                f"latents of the shape {tuple(latents.shape)}",
                expected=f"{shape}, packed noise of the full size",
                fix="leave latents out, or pass what prepare_latents gives for this size",
            )
        width, height = plan.size[:2]
        tokens, _ = pipe.prepare_latents(
            1,
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
