"""Whether a diffusers pipeline is one whose pictures this package can draw, and which model it is.

Asked when a pipeline is enabled and again at every call, because parts of a pipeline may be
exchanged in between. What the pipeline would do and the stage graphs would not is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.flux.config import TRANSFORMER, transformer_config
from fresco_trt.models.registry import model_facts, model_names

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts

PIPELINE = "FluxPipeline"
SCHEDULER = "FlowMatchEulerDiscreteScheduler"

_AS_LOADED = f"a {TRANSFORMER} that is as from_pretrained gives it"

# What the plan's sigmas take for granted of a scheduler; diffusers' own defaults.
_PLAIN_SIGMAS = {
    "shift_terminal": None,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
}


def check_kind(kind: type) -> None:
    """Raise IncompatibleOptions unless ``kind``, the pipeline's own class, is FluxPipeline itself:
    what another class adds in its call would be lost.
    """
    import diffusers

    untyped: Any = diffusers
    if kind is not untyped.FluxPipeline:
        raise IncompatibleOptions(
            f"a pipeline of the class {kind.__name__}",
            expected=f"diffusers' own {PIPELINE}, which draws from text alone",
            fix="enable such a pipeline, or call this one as it is",
        )


def facts_of(pipe: Any, model: str | None = None) -> ModelFacts:
    """The facts of the model in a pipeline: of ``model``, or of the first of its dimensions.

    Raises UnknownModel, and IncompatibleOptions for a transformer of other dimensions, one that is
    wrapped, hooked, compiled or in training, and for a scheduler or a decoder that the facts do not
    describe.
    """
    _refuse(_transformer_problems(pipe.transformer), _AS_LOADED)
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
        wanted = transformer_config(model_facts(name))
        if all(key == "out_channels" or stored[key] == wanted[key] for key in wanted):
            return model_facts(name)
    depths = f"{stored['num_layers']}+{stored['num_single_layers']} blocks"
    raise IncompatibleOptions(
        f"a transformer of {depths} with {stored['num_attention_heads']} heads",
        expected=f"the dimensions of one of {', '.join(names)}",
        fix="enable a pipeline of one of these models",
    )


def _transformer_problems(transformer: Any) -> Iterator[str]:
    """What the pipeline would run and the stage graphs, which call the blocks, would not."""
    if type(transformer).__name__ != TRANSFORMER:
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
    if pipe.vae_scale_factor != facts.vae_scale:
        yield f"a decoder that enlarges by {pipe.vae_scale_factor}, not {facts.vae_scale}"
    scheduler = pipe.scheduler
    if type(scheduler).__name__ != SCHEDULER:
        yield f"a scheduler of the class {type(scheduler).__name__}, not {SCHEDULER}"
        return
    for name, value in _sigma_rules(facts).items():
        given = scheduler.config.get(name, value)
        if given != value:
            yield f"a scheduler with {name}={given!r}, not {value!r}"


def _sigma_rules(facts: ModelFacts) -> dict[str, object]:
    """The scheduler's settings that decide the sigmas of this model."""
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


def _refuse(problems: Iterator[str], expected: str) -> None:
    for problem in problems:
        raise IncompatibleOptions(
            problem,
            expected=expected,
            fix="put the original part back, or call fresco_trt.disable(pipe)",
        )
