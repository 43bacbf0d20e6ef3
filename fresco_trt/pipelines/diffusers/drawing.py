"""A call of an enabled pipeline, from its arguments to diffusers' own output.

The pipeline's encoders, latents and decoder at both ends, and the sampler in between. Nothing is
kept after a call, on the pipeline or elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.flux.model import FluxLayout, unpack
from fresco_trt.pipelines.diffusers.call import Call, read_call
from fresco_trt.pipelines.diffusers.fit import facts_of
from fresco_trt.pipelines.image import HeldLayout, guidance_of
from fresco_trt.run.noise import NoisePyramid, fresh_generator
from fresco_trt.run.sampler import sample
from fresco_trt.run.transition import draws

if TYPE_CHECKING:
    from fresco_trt.pipelines.diffusers.sources import Source
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan


def draw(
    pipe: Any,
    source: Source,
    function: Callable[..., Any],
    args: Sequence[Any],
    given: Mapping[str, Any],
) -> Any:
    """What ``function``, the pipeline's own call, would return, drawn with the source's plan."""
    call = read_call(function, pipe, args, given)
    facts = facts_of(pipe, source.model)
    plan = source.plan(pipe, facts, call)
    text_tokens = source.text_tokens(call)
    with torch.no_grad():
        inputs, dtype = _conditioning(pipe, facts, call, plan, text_tokens)
        field = _noise(pipe, facts, call, plan, dtype)
        tokens = _sampled(pipe, facts, source, plan, inputs, field)
        picture = _decoded(pipe, call, plan, tokens.to(dtype))
    return _returned(pipe, call, picture)


def _sampled(
    pipe: Any,
    facts: ModelFacts,
    source: Source,
    plan: StagePlan,
    inputs: Mapping[str, Tensor],
    field: Tensor,
) -> Tensor:
    """The tokens [1,N,4C] of the finished picture, float32."""
    text_tokens = inputs["text"].shape[1]
    tokens = field
    with source.runners(pipe, facts, plan, text_tokens) as (runners, basis, device):
        layout = HeldLayout(FluxLayout(facts=facts, text_tokens=text_tokens), device)
        pyramid = NoisePyramid.from_field(field, coarsest=plan.stages[0].grid.scale).to(device)
        held = {name: each.to(device) for name, each in inputs.items()}
        fresh = _fresh(plan, field)
        with _progress(pipe, plan.nfe) as bar:
            for step in sample(plan, runners, held, pyramid, layout, fresh=fresh, basis=basis):
                tokens = step.tokens
                bar.update()
    return tokens


def _conditioning(
    pipe: Any, facts: ModelFacts, call: Call, plan: StagePlan, text_tokens: int
) -> tuple[dict[str, Tensor], torch.dtype]:
    """The engines' constant inputs, float32, and the dtype that the pipeline would draw in."""
    width, height = plan.size
    embeds = {
        "prompt_embeds": call.prompt_embeds,
        "pooled_prompt_embeds": call.pooled_prompt_embeds,
    }
    pipe.check_inputs(
        call.prompt, call.prompt_2, height, width, **embeds, max_sequence_length=text_tokens
    )
    text, pooled, _ = pipe.encode_prompt(
        prompt=call.prompt,
        prompt_2=call.prompt_2,
        device=pipe._execution_device,
        max_sequence_length=text_tokens,
        **embeds,
    )
    inputs = {"text": text.float(), "pooled": pooled.float()}
    scale = _guidance(facts, call)
    if scale is not None:
        inputs["guidance"] = torch.tensor([scale], dtype=torch.float32)
    return inputs, text.dtype


def _guidance(facts: ModelFacts, call: Call) -> float | None:
    """The scale of a model that takes one. Raises PlanError for one out of range, and
    IncompatibleOptions for a model that takes none, unless it is 0: no guidance is what that has.
    """
    if facts.guidance:
        return guidance_of(facts, call.guidance_default if call.guidance is None else call.guidance)
    return guidance_of(facts, call.guidance or None)


def _noise(pipe: Any, facts: ModelFacts, call: Call, plan: StagePlan, dtype: torch.dtype) -> Tensor:
    """The noise that the pipeline itself would start from, float32 [1,C,H,W] on the CPU.

    Raises IncompatibleOptions for latents of another shape.
    """
    grid = plan.stages[-1].grid
    shape = (1, grid.tokens, facts.in_channels)
    if call.latents is not None and tuple(call.latents.shape) != shape:
        raise IncompatibleOptions(
            f"latents of the shape {tuple(call.latents.shape)}",
            expected=f"{shape}, packed noise of the full size",
            fix="leave latents out, or pass what prepare_latents gives for this size",
        )
    width, height = plan.size
    tokens, _ = pipe.prepare_latents(
        1,
        facts.latent_channels,
        height,
        width,
        dtype,
        pipe._execution_device,
        call.generator,
        call.latents,
    )
    # On the CPU, where halving gives the same coarse levels whatever the device.
    return unpack(tokens.float().cpu(), grid.rows, grid.columns)


def _fresh(plan: StagePlan, field: Tensor) -> torch.Generator | None:
    """What is drawn at a transition follows from the noise, and so from the caller's generator."""
    if not any(map(draws, plan.transitions)):
        return None
    digest = hashlib.sha256(field.contiguous().numpy().tobytes()).digest()
    return fresh_generator(int.from_bytes(digest[:7], "big"))


@contextmanager
def _progress(pipe: Any, total: int) -> Iterator[Any]:
    """The pipeline's own bar; its settings, which the bar would leave behind, are taken back."""
    before = hasattr(pipe, "_progress_bar_config")
    try:
        with pipe.progress_bar(total=total) as bar:
            yield bar
    finally:
        if not before:
            del pipe._progress_bar_config


def _decoded(pipe: Any, call: Call, plan: StagePlan, tokens: Tensor) -> Any:
    """The picture in the form that was asked for; latents as diffusers returns them, packed."""
    from diffusers.utils.torch_utils import get_module_execution_device

    if call.output_type == "latent":
        return tokens.to(pipe._execution_device)
    width, height = plan.size
    config = pipe.vae.config
    latents = pipe._unpack_latents(tokens, height, width, pipe.vae_scale_factor)
    latents = latents / config.scaling_factor + config.shift_factor
    latents = latents.to(get_module_execution_device(pipe.vae))
    pixels = pipe.vae.decode(latents, return_dict=False)[0]
    return pipe.image_processor.postprocess(pixels, output_type=call.output_type)


def _returned(pipe: Any, call: Call, picture: Any) -> Any:
    from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

    pipe.maybe_free_model_hooks()
    return FluxPipelineOutput(images=picture) if call.return_dict else (picture,)
