"""A call of an enabled pipeline, from its arguments to diffusers' own output.

The pipeline's encoders, latents and decoder at both ends, and the sampler in between. Nothing is
kept after a call, on the pipeline or elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.pipelines.diffusers.call import Call, read_call
from fresco_trt.pipelines.diffusers.fit import driver_of, facts_of
from fresco_trt.pipelines.image import guidance_of
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.request import Conditioning

if TYPE_CHECKING:
    from fresco_trt.pipelines.diffusers.sources import Source
    from fresco_trt.plan.facts import ModelFacts


def draw(
    pipe: Any,
    source: Source,
    function: Callable[..., Any],
    args: Sequence[Any],
    given: Mapping[str, Any],
) -> Any:
    """What ``function``, the pipeline's own call, would return, drawn with the source's plan."""
    facts = facts_of(pipe, source.model)
    driver = driver_of(facts)
    call = read_call(function, driver, pipe, args, given)
    plan = source.plan(pipe, facts, call)
    text_tokens = source.text_tokens(call)
    prompt = {
        name: getattr(call, name)
        for name in ("prompt", "prompt_2", "prompt_embeds", "pooled_prompt_embeds")
    }
    with torch.no_grad():
        inputs, dtype = driver.encoded(pipe, prompt, plan.size[:2], text_tokens)
        scale = _guidance(facts, call)
        if scale is not None:
            inputs["guidance"] = torch.tensor([scale], dtype=torch.float32)
        start = {"generator": call.generator, "latents": call.latents, "dtype": dtype}
        field = driver.noise(pipe, facts, plan, start)
        tokens = field
        with source.runners(pipe, facts, plan, text_tokens) as (runners, basis, device):
            denoiser = Denoiser.of(
                facts, plan, runners, text_tokens=text_tokens, device=device, basis=basis
            )
            with _progress(pipe, plan.nfe) as bar:
                for step in denoiser.steps(Conditioning(inputs=inputs), field):
                    tokens = step.tokens
                    bar.update()
        pictures = driver.output(pipe, plan, tokens.to(dtype), call.output_type)
    pipe.maybe_free_model_hooks()
    return driver.wrapped(pictures) if call.return_dict else (pictures,)


def _guidance(facts: ModelFacts, call: Call) -> float | None:
    """The scale of a model that takes one; another's pipeline reads none either, and draws the same
    picture whatever it is given. Raises PlanError for one out of range.
    """
    return guidance_of(facts, call.guidance) if facts.guidance else None


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
