"""Whether a diffusers pipeline is one whose pictures this package can draw, and which model it is.

Asked when a pipeline is enabled and again at every call, because parts of a pipeline may be
exchanged in between. What the pipeline would do and the stage graphs would not is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.registry import (
    family_named,
    family_names,
    family_of,
    model_facts,
    model_names,
)

if TYPE_CHECKING:
    from fresco_trt.models.family import DiffusersDriver
    from fresco_trt.plan.facts import ModelFacts


def check_kind(kind: type) -> None:
    """Raise IncompatibleOptions unless ``kind``, the pipeline's own class, is one of diffusers'
    that a family drives: what another class adds in its call would be lost.
    """
    import diffusers

    driven = [driver.pipeline for driver in _drivers()]
    if not any(kind is getattr(diffusers, name) for name in driven):
        raise IncompatibleOptions(
            f"a pipeline of the class {kind.__name__}",
            expected=f"diffusers' own {' or '.join(driven)}, which draws from text alone",
            fix="enable such a pipeline, or call this one as it is",
        )


def driver_of(facts: ModelFacts) -> DiffusersDriver:
    """How pipelines of a model's family are driven; IncompatibleOptions where they are not."""
    driver = family_of(facts).diffusers
    if driver is None:
        raise IncompatibleOptions(
            f"a diffusers pipeline of {facts.name}",
            expected=f"one of {', '.join(each.pipeline for each in _drivers())}",
            fix="build a bundle of the model, and draw with FrescoPipeline",
        )
    return driver


def _drivers() -> list[DiffusersDriver]:
    drivers = (family_named(name).diffusers for name in family_names())
    return [driver for driver in drivers if driver is not None]


def facts_of(pipe: Any, model: str | None = None) -> ModelFacts:
    """The facts of the model in a pipeline: of ``model``, or of the first of its dimensions.

    Raises UnknownModel, and IncompatibleOptions for a transformer of other dimensions, one that is
    wrapped, hooked, compiled or in training, and for a scheduler or a decoder that the facts do not
    describe.
    """
    kinds = [driver.transformer for driver in _drivers()]
    as_loaded = f"a {' or '.join(kinds)} that is as from_pretrained gives it"
    _refuse(_transformer_problems(pipe.transformer, kinds), as_loaded)
    names = model_names() if model is None else (model,)
    facts = _by_dimensions(pipe.transformer, names)
    _refuse(_surrounding_problems(pipe, facts), f"those of {facts.name}")
    return facts


def _by_dimensions(transformer: Any, names: tuple[str, ...]) -> ModelFacts:
    """The first of ``names`` of these dimensions; those that share them have presets of their own
    alone.
    """
    stored = transformer.config
    for name in names:
        facts = model_facts(name)
        wanted = family_of(facts).weights.config(facts)
        if all(key == "out_channels" or stored.get(key) == wanted[key] for key in wanted):
            return facts
    depths = f"{stored['num_layers']}+{stored['num_single_layers']} blocks"
    raise IncompatibleOptions(
        f"a transformer of {depths} with {stored['num_attention_heads']} heads",
        expected=f"the dimensions of one of {', '.join(names)}",
        fix="enable a pipeline of one of these models",
    )


def _transformer_problems(transformer: Any, kinds: list[str]) -> Iterator[str]:
    """What the pipeline would run and the stage graphs, which call the blocks, would not."""
    if type(transformer).__name__ not in kinds:
        yield f"a transformer of the class {type(transformer).__name__}"
        return
    if transformer._compiled_call_impl is not None:
        yield "a transformer that was compiled as a whole"
    if transformer.training:
        yield "a transformer in training mode"
    own = transformer._forward_hooks or transformer._forward_pre_hooks
    if own or "forward" in vars(transformer) or _hooked(transformer):
        yield "a transformer with hooks of its own (offloading, a cache of diffusers, or yours)"


def _hooked(transformer: Any) -> bool:
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if hasattr(module, "_hf_hook") or (registry is not None and registry.hooks):
            return True
    return False


def _surrounding_problems(pipe: Any, facts: ModelFacts) -> Iterator[str]:
    driver, scheduler = driver_of(facts), pipe.scheduler
    if pipe.vae_scale_factor != facts.vae_scale:
        yield f"a decoder that enlarges by {pipe.vae_scale_factor}, not {facts.vae_scale}"
    if type(scheduler).__name__ != driver.scheduler:
        yield f"a scheduler of the class {type(scheduler).__name__}, not {driver.scheduler}"
        return
    for name, value in driver.scheduler_rules(facts).items():
        given = scheduler.config.get(name, value)
        if given != value:
            yield f"a scheduler with {name}={given!r}, not {value!r}"


def _refuse(problems: Iterator[str], expected: str) -> None:
    for problem in problems:
        raise IncompatibleOptions(
            problem,
            expected=expected,
            fix="put the original part back, or call fresco_trt.disable(pipe)",
        )
