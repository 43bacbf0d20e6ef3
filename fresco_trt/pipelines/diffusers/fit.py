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
    variant,
)
from fresco_trt.pipelines.diffusers.digested import modules_of
from fresco_trt.pipelines.diffusers.own_code import (
    Comparison,
    foreign_functions,
    foreign_methods,
    is_own,
    new_transformer,
)

if TYPE_CHECKING:
    from fresco_trt.bundle import Bundle
    from fresco_trt.models.driving import DiffusersDriver
    from fresco_trt.plan.facts import ModelFacts


def own_class(pipe: Any) -> type:
    """The class of a pipeline that is not, or no longer, enabled."""
    return next(kind for kind in type(pipe).__mro__ if not hasattr(kind, "_fresco_held"))


def driver_of(pipe: Any) -> DiffusersDriver:
    """How a pipeline is driven. Raises IncompatibleOptions unless its own class is one of
    diffusers' that a family drives: what another class adds in its call would be lost.
    """
    import diffusers

    kind = own_class(pipe)
    drivers = {driver.pipeline: driver for driver in _drivers()}
    driver = drivers.get(kind.__name__)
    if driver is None or kind is not getattr(diffusers, driver.pipeline, None):
        raise IncompatibleOptions(
            f"a pipeline of the class {kind.__name__}",
            expected=f"diffusers' own {', '.join([*drivers][:-1])} or {[*drivers][-1]}",
            fix="enable such a pipeline, or call this one as it is",
        )
    foreign = ["__call__"] if not is_own(kind, "__call__") else foreign_functions(kind, "__call__")
    for name in foreign:
        raise IncompatibleOptions(
            f"a {kind.__name__} with a {name} of its own",
            expected="diffusers' own, which is what a stage plan stands in for",
            fix=f"put {name} back, or call the pipeline as it is",
        )
    return driver


def _drivers() -> list[DiffusersDriver]:
    return [driver for name in family_names() for driver in family_named(name).diffusers]


CACHE_HOOKS = frozenset(
    {
        "fbc_block_hook",
        "fbc_leader_block_hook",
        "mag_cache_block_hook",
        "mag_cache_leader_block_hook",
        "pyramid_attention_broadcast",
        "taylorseer_cache",
    }
)
"""Hooks of diffusers' caches that are on parts which a stage graph calls, as the forward does."""


def facts_of(
    pipe: Any, model: str | None = None, *, hooks: frozenset[str] = frozenset()
) -> ModelFacts:
    """The facts of the model in a pipeline: of ``model``, or of the first of its dimensions, or of
    a variant where no model has them; its time shift is that of the pipeline's scheduler. Parts may
    have hooks of diffusers of the names ``hooks``.

    Raises UnknownModel, and IncompatibleOptions for dimensions that are not ``model``'s or that no
    transformer of the family has, for one that is
    wrapped, hooked, compiled or in training or whose parts run other code than diffusers' own, and
    for a scheduler or a decoder that the facts do not describe.
    """
    driver = driver_of(pipe)
    as_loaded = f"a {driver.transformer} that is as from_pretrained gives it"
    hooks = hooks if driver.calls_blocks else frozenset()
    _refuse(_transformer_problems(pipe.transformer, driver, hooks), as_loaded)
    facts = _by_dimensions(pipe, driver, model)
    _refuse(_foreign_parts(pipe.transformer, driver, facts, hooks=hooks), as_loaded)
    _refuse(_surrounding_problems(pipe, driver, facts), f"those of {facts.name}")
    scheduler = pipe.scheduler
    # ``set_shift`` leaves the configuration as it was.
    return driver.scheduled(facts, {**scheduler.config, "shift": scheduler.shift})


def check_whole(pipe: Any, facts: ModelFacts) -> None:
    """Raise IncompatibleOptions unless every layer of the transformer, too, is as diffusers makes
    it: asked where engines run in its place, and none of its code does.
    """
    problems = _foreign_parts(pipe.transformer, driver_of(pipe), facts, whole=True)
    _refuse(
        problems,
        "plain layers as from_pretrained gives them, in whose place engines run",
        fix="put the original part back, or enable the pipeline without engines",
    )


def _by_dimensions(pipe: Any, driver: DiffusersDriver, model: str | None) -> ModelFacts:
    """The model that was asked for, or the first of these dimensions that the pipeline's class
    draws with: those that share them have presets of their own alone. Where none has them, the
    facts are those of a variant.
    """
    transformer, scale = pipe.transformer, driver.vae_scale(pipe)
    config = {name: _listed(value) for name, value in transformer.config.items()}
    for facts in _drawn_by(driver) if model is None else (_named(model, driver),):
        wanted = family_of(facts).weights.config(facts)
        same = all(key == "out_channels" or config.get(key) == wanted[key] for key in wanted)
        if same and (model is not None or scale == facts.vae_scale):
            return facts
    base = driver.base if model is None else model.partition(":")[0]
    if base is None:
        raise IncompatibleOptions(
            f"a {driver.transformer} of other dimensions than its models have",
            expected="the dimensions of one of these",
            fix="enable a pipeline of one of these models",
        )
    like = model_facts(base)
    known = family_of(like).weights.config(like).keys() & config.keys()
    described = variant(like, {**{name: config[name] for name in known}, "vae_scale": scale})
    if model is None:
        return described
    raise IncompatibleOptions(
        f"a transformer of {described.name}",
        expected=f"the dimensions of {model}",
        fix=f"pass model={described.name!r}, or leave model out",
    )


def _drawn_by(driver: DiffusersDriver) -> Iterator[ModelFacts]:
    """The models whose pictures a class of pipelines draws."""
    return (facts for facts in map(model_facts, model_names()) if _draws(driver, facts))


def _draws(driver: DiffusersDriver, facts: ModelFacts) -> bool:
    return driver in family_of(facts).diffusers and driver.references == facts.references


def _named(model: str, driver: DiffusersDriver) -> ModelFacts:
    """The model of that name. Raises IncompatibleOptions where it has another pipeline."""
    facts = model_facts(model)
    if not _draws(driver, facts):
        what = "edits pictures" if facts.references else "draws from text"
        raise IncompatibleOptions(
            f"the model {model}, which {what}, for a {driver.pipeline}",
            expected=f"one of {', '.join(each.name for each in _drawn_by(driver))}",
            fix="leave model out, or enable the pipeline that diffusers has for it",
        )
    return facts


def _listed(value: object) -> object:
    """A configuration from a file has lists where one from Python has tuples."""
    return list(value) if isinstance(value, tuple) else value


def _transformer_problems(
    transformer: Any, driver: DiffusersDriver, hooks: frozenset[str]
) -> Iterator[str]:
    """What the pipeline would run and the stage graphs, which call the blocks, would not."""
    if type(transformer).__name__ != driver.transformer:
        yield f"a transformer of the class {type(transformer).__name__}"
        return
    if transformer._compiled_call_impl is not None:
        yield "a transformer that was compiled as a whole"
    if transformer.training:
        yield "a transformer in training mode"
    own = transformer._forward_hooks or transformer._forward_pre_hooks
    if own or _hooks(transformer) - hooks:
        yield "a transformer with hooks of its own (offloading, a cache of diffusers, or yours)"
    if not driver.calls_blocks:
        yield from _problems_of_blocks(transformer)


def _problems_of_blocks(transformer: Any) -> Iterator[str]:
    """What blocks would run and stage graphs, which call only their layers, would not."""
    for module in modules_of(transformer):
        if module._compiled_call_impl is not None:
            yield "a transformer whose blocks were compiled"
            return
        processor = getattr(module, "processor", None)
        if getattr(processor, "_attention_backend", None) is not None:
            yield "a transformer with another attention backend than torch's"
            return


def is_cached(transformer: Any) -> bool:
    """Whether a cache of diffusers is on a transformer's parts."""
    return bool(_hooks(transformer) & CACHE_HOOKS)


def _hooks(transformer: Any) -> set[str]:
    """Names of the hooks that diffusers and accelerate have put on a transformer and its parts."""
    found: set[str] = set()
    for module in modules_of(transformer):
        own = vars(module)  # a module's own getattr searches its parameters and buffers first
        registry = own.get("_diffusers_hook")
        if registry is not None:
            found.update(registry.hooks)
        if "_hf_hook" in own:
            found.add("_hf_hook")
    return found


def _foreign_parts(
    transformer: Any,
    driver: DiffusersDriver,
    facts: ModelFacts,
    *,
    whole: bool = False,
    hooks: frozenset[str] = frozenset(),
) -> Iterator[str]:
    new = new_transformer(driver.transformer, family_of(facts).weights.config(facts))
    comparison = Comparison(uncalled=driver.uncalled, whole=whole, hooks=hooks)
    return comparison.differences(transformer, new)


def _surrounding_problems(pipe: Any, driver: DiffusersDriver, facts: ModelFacts) -> Iterator[str]:
    scheduler = pipe.scheduler
    if (scale := driver.vae_scale(pipe)) != facts.vae_scale:
        yield f"a decoder that enlarges by {scale}, not {facts.vae_scale}"
    import diffusers

    kind = type(scheduler)
    if kind is not getattr(diffusers, driver.scheduler):
        own = f"diffusers' own {driver.scheduler}"
        yield f"a scheduler of the class {kind.__module__}.{kind.__name__}, not {own}"
        return
    for name in foreign_methods(scheduler):
        yield f"a scheduler with a {name} of its own"


_PUT_BACK = "put the original part back, or call fresco_trt.disable(pipe)"


def _refuse(problems: Iterator[str], expected: str, fix: str = _PUT_BACK) -> None:
    for problem in problems:
        raise IncompatibleOptions(problem, expected=expected, fix=fix)


def check_engines(facts: ModelFacts, bundle: Bundle) -> None:
    """Raise IncompatibleOptions for a scheduler whose sigmas are not those of the engines' plan,
    and for engines of several pictures: the pictures of a call are drawn side by side here, and
    there may be any number of them.
    """
    planned = model_facts(bundle.manifest.model.name)
    if (facts.shift, facts.fixed_shift) != (planned.shift, planned.fixed_shift):
        raise IncompatibleOptions(
            f"a scheduler that shifts by {facts.shift or facts.fixed_shift}",
            expected=f"{planned.shift or planned.fixed_shift}, by which the engines were planned",
            fix="put the model's own scheduler back, or enable the pipeline without engines",
        )
    if bundle.batch != 1:
        raise IncompatibleOptions(
            f"engines of batch={bundle.batch} for a pipeline of diffusers",
            expected="engines that draw one picture at a time",
            fix="build them without batch in --target, or draw with FrescoPipeline",
        )
