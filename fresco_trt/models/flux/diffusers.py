"""diffusers' FluxPipeline, driven from outside: its encoders, its noise and its decoder.

Under the part of ``pipelines/`` that enables a pipeline. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.flux.config import TRANSFORMER
from fresco_trt.models.flux.tokens import unpack

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

# What the plan's sigmas take for granted of a scheduler; diffusers' own defaults.
_PLAIN_SIGMAS = {
    "shift_terminal": None,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
}


class FluxDriver:
    """A :class:`~fresco_trt.models.family.DiffusersDriver`."""

    pipeline = "FluxPipeline"
    transformer = TRANSFORMER
    scheduler = "FlowMatchEulerDiscreteScheduler"
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

    def scheduler_rules(self, facts: ModelFacts) -> dict[str, object]:
        """As in the protocol."""
        rule = facts.shift
        if rule is None:
            return {**_PLAIN_SIGMAS, "use_dynamic_shifting": False, "shift": 1.0}
        return {
            **_PLAIN_SIGMAS,
            "use_dynamic_shifting": True,
            "time_shift_type": "exponential",
            "base_shift": rule.base_shift,
            "max_shift": rule.max_shift,
            "base_image_seq_len": rule.base_tokens,
            "max_image_seq_len": rule.max_tokens,
        }

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
