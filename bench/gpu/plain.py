"""The plain pipeline beside ours: diffusers' own, as it is, compiled, or with cache-dit's cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench.gpu.device import Stopwatch, clock_of
from bench.gpu.methods import (
    CACHE_DIT_COMPILED,
    CACHED,
    COMPILED,
    TRANSFORMER,
    Timed,
    conditioning,
)
from fresco_trt.bench.plain import Plain, denoise

if TYPE_CHECKING:
    from torch import Tensor

    from bench.gpu.engines import Subject
    from bench.gpu.methods import Method
    from fresco_trt.plan.facts import ModelFacts


class PlainPipeline:
    """diffusers' own FluxPipeline around a transformer, without encoders and decoder.

    ``cache`` is put on it for good.
    """

    def __init__(
        self,
        transformer: Any,
        subject: Subject,
        inputs: Mapping[str, Tensor],
        *,
        cache: Callable[[Any], None] | None = None,
    ) -> None:
        self._subject = subject
        self._inputs = {name: inputs[name].to(subject.dtype) for name in ("text", "pooled")}
        self._pipe = _pipe(transformer, subject.facts)
        self._watch = Stopwatch(clock_of(subject.device))
        self._entered: list[Any] = []
        if cache is not None:
            cache(self._pipe)
        transformer.register_forward_pre_hook(self._enter)
        transformer.register_forward_hook(self._leave)

    def method(self, steps: int) -> Method:
        """The pipeline's denoising at a number of steps."""

        def method(seed: int) -> Timed:
            facts, size = self._subject.facts, self._subject.size
            point = Plain(steps=steps)
            latents, seconds = denoise(self._pipe, facts, size, self._inputs, [seed], point)
            return Timed(seconds=seconds, inside=self._watch.taken(), latents=latents)

        return method

    def _enter(self, *_: object) -> None:
        self._entered.append(self._watch.mark())

    def _leave(self, *_: object) -> None:
        self._watch.add(TRANSFORMER, self._entered.pop())


def pipeline_of(name: str, transformer: Any, subject: Subject) -> PlainPipeline:
    """The plain pipeline over a transformer of its own, in one of the ways of ``PIPELINES``.

    Raises ImportError without cache-dit where that is asked for.
    """
    if name in (COMPILED, CACHE_DIT_COMPILED):
        compile_blocks(transformer, subject.device)
    cache = None
    if name in CACHED:
        cache = partial(put_cache_dit, steps=subject.facts.default_steps)
    return PlainPipeline(transformer, subject, conditioning(subject), cache=cache)


def compile_blocks(transformer: Any, device: str) -> None:
    """Have its blocks compiled by torch.compile one kind at a time, as diffusers does it: as fast
    as the whole at once, and compiled in a fraction of the time. On a CPU they are only traced.
    """
    compiler = "inductor" if device == "cuda" else "eager"
    transformer.compile_repeated_blocks(fullgraph=True, backend=compiler)


def put_cache_dit(pipe: Any, *, steps: int) -> None:
    """cache-dit's DBCache with its TaylorSeer calibrator on a pipeline that draws in ``steps``.

    By its own defaults, but for no more blocks that always run than there are, and for which steps
    it computes: those of its own schedule "fast". What its threshold would choose depends on the
    picture, and random weights draw none. Raises ImportError where it is missing.
    """
    library: Any = import_module("cache_dit")
    logging.getLogger("CACHE_DIT").setLevel(logging.ERROR)
    blocks = library.DBCacheConfig().Fn_compute_blocks
    config = library.DBCacheConfig(
        Fn_compute_blocks=min(blocks, len(pipe.transformer.transformer_blocks)),
        num_inference_steps=steps,
        steps_computation_mask=computed_steps(steps),
        steps_computation_policy="static",
    )
    calibrator = library.TaylorSeerCalibratorConfig(taylorseer_order=1)
    library.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)


def computed_steps(steps: int) -> list[int]:
    """cache-dit's schedule: of each step whether it is computed (1) or the cache answers (0)."""
    library: Any = import_module("cache_dit")
    found: list[int] = library.steps_mask(total_steps=steps, mask_policy="fast")
    return found


def _pipe(transformer: Any, facts: ModelFacts) -> Any:
    import diffusers

    untyped: Any = diffusers
    rule = facts.shift
    shifted = {} if rule is None else _dynamic(rule)
    parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    # cache-dit changes the class of the pipeline that it is put on: each has one of its own.
    own: Any = type("FluxPipeline", (untyped.FluxPipeline,), {})
    pipe = own(
        scheduler=untyped.FlowMatchEulerDiscreteScheduler(**shifted),
        transformer=transformer,
        **dict.fromkeys(parts),
    )
    pipe.vae_scale_factor = facts.vae_scale  # which it would take from the decoder
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _dynamic(rule: Any) -> dict[str, Any]:
    return {
        "use_dynamic_shifting": True,
        "base_shift": rule.base_shift,
        "max_shift": rule.max_shift,
        "base_image_seq_len": rule.base_tokens,
        "max_image_seq_len": rule.max_tokens,
    }
