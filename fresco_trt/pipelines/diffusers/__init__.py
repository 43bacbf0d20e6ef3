"""One line on a diffusers pipeline: its own encoders and decoder around this package's sampler.

Beside ``pipelines/image.py``, for a pipeline that is loaded already. ``enable`` gives that one
object a class of its own, made on the spot below the one it had, and ``disable`` gives it the old
one back: Python looks up ``__call__`` on the class, so that an attribute of the object would not be
asked, and one of diffusers' class would change every pipeline of the process.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, fields
from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from fresco_trt.bundle.trust import NO_TRUST
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.pipelines.diffusers.call import spellings
from fresco_trt.pipelines.diffusers.fit import driver_of, facts_of, own_class
from fresco_trt.pipelines.diffusers.sources import BundleEngines, Choices, OwnTransformer
from fresco_trt.pipelines.loading import trust_of
from fresco_trt.plan.arguments import (
    OF_A_CALL,
    in_python,
    optional,
    place,
    preset_of,
    whole,
    word,
)
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.paths import paths_refused

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fresco_trt.bundle.trust import Trust
    from fresco_trt.pipelines.diffusers.sources import Source
    from fresco_trt.plan.arguments import Spelling
    from fresco_trt.plan.config import PresetConfig

__all__ = ["disable", "enable"]


def enable(
    pipe: Any,
    *,
    model: str | None = None,
    stages: int | None = None,
    preset: PresetConfig | str | None = None,
    delta: float | None = None,
    shift: float | None = None,
    cache: CacheConfig | str | None = None,
    engines: str | Path | None = None,
    trust_native_code: bool = False,
    verify_key: str | Path | None = None,
) -> None:
    """Make a pipeline of diffusers draw with a stage plan, when it is called as ever.

    It may be a FluxPipeline or a FluxKontextPipeline, a QwenImagePipeline, QwenImageEditPipeline or
    QwenImageEditPlusPipeline, or a HunyuanVideoPipeline. ``model`` is whose presets it draws by,
    where several models have the pipeline's dimensions (None: the first of them, "flux-tiny" before
    "flux-tiny-turbo").
    ``stages`` (None: 3), ``preset``, ``delta``, ``shift`` and ``cache`` are those of
    :func:`fresco_trt.plan`; the size comes with each call. One stage without a preset is the plain
    sampler with the call's ``num_inference_steps``; otherwise the preset decides the steps. A cache
    that needs an SVD basis takes it from a file: "svd,basis=FILE".
    The pipeline's own transformer runs, where it is. With ``engines``, a bundle built from the same
    weights, its engines run in its place, and its plan leaves nothing else to be asked for but
    ``trust_native_code`` and ``verify_key``, as of :meth:`fresco_trt.FrescoPipeline.from_bundle`.

    A pipeline that is enabled already is enabled anew. Raises UnknownModel, PlanError leaves for a
    plan that cannot be, IncompatibleOptions for a pipeline that would lose something,
    CalibrationError for a wrong basis, BundleError leaves for a wrong bundle; the pipeline is then
    as it was. A call then raises IncompatibleOptions for every argument that it cannot honour, and
    ignores none. With the preset "specedit" what a call returns has ``masks`` beside its images:
    pictures of PIL, mode "L", white where the edit was found to touch the source; it warns
    (EditWarning) of an edit that touches nothing, or more than a stage has room for. Calls from
    several threads are drawn one after the other.

    A copy of an enabled pipeline is enabled as well, and each is disabled on its own: a shallow one
    shares the engines, as it shares the transformer; a deep or a pickled one is enabled anew, where
    it is made, and raises what ``enable`` does.
    """
    with in_python(OF_A_CALL), paths_refused():
        choices = Choices(
            model=optional(word, "model", model),
            stages=optional(whole, "stages", stages),
            preset=preset_of(preset, delta, shift),
            cache=None if cache is None else CacheConfig.of(cache),
        )
        trust = trust_of(trust_native_code, verify_key)
        _enable(pipe, choices, optional(place, "engines", engines), trust)


def _enable(pipe: Any, choices: Choices, engines: Path | None, trust: Trust) -> None:
    driver, kind = driver_of(pipe), own_class(pipe)
    source = _source(pipe, choices, engines, trust)
    disable(pipe)
    asked = {each.name: getattr(choices, each.name) for each in fields(choices)}
    if engines is not None:
        key = trust.verify_key
        asked["engines"] = engines.absolute()
        asked["trust_native_code"] = trust.native_code
        asked["verify_key"] = None if key is None else key.absolute()
    held = Held(source=source, asked=asked)
    pipe.__class__ = _enabled_class(kind, held, spellings(driver))
    held.by.add(pipe)


def disable(pipe: Any) -> None:
    """Give a pipeline its own class back, and free what was held for it; a plain one stays so.

    A call that another thread is drawing is waited for.
    """
    kind = type(pipe)
    if issubclass(kind, _Enabled):
        pipe.__class__ = own_class(pipe)
        kind._fresco_held.release(pipe)


@dataclass(slots=True, kw_only=True, eq=False)
class Held:
    """What a pipeline, and shallow copies of it, draw with, and how it was ``asked`` for.

    ``turn`` is held by whoever draws: engines own their outputs, and the pipeline has one bar, one
    tokenizer and one interrupt. Its owner may take it again, as a callback that draws does.
    """

    source: Source
    asked: Mapping[str, Any]
    by: WeakSet[Any] = field(default_factory=WeakSet)
    turn: RLock = field(default_factory=RLock)

    def release(self, pipe: Any) -> None:
        """Give up one pipeline's share; the last one's frees what is held."""
        with self.turn:
            self.by.discard(pipe)
            if not self.by:
                self.source.close()


class _Enabled:
    """Marks the classes that are made here, and holds what their pipelines draw with."""

    __slots__ = ()
    _fresco_held: Held


def _copied(pipe: Any) -> Any:
    """Another pipeline of the same parts, over the same engines."""
    kind = type(pipe)
    other: Any = object.__new__(own_class(pipe))
    vars(other).update(vars(pipe))
    other.__class__ = kind
    kind._fresco_held.by.add(other)
    return other


def _reduced(pipe: Any, protocol: int) -> tuple[object, ...]:
    """What a deep or a pickled copy is made from: the class is one of this process alone."""
    return _enabled_again, (own_class(pipe), vars(pipe), pipe._fresco_held.asked)


def _enabled_again(kind: type, state: Mapping[str, Any], asked: Mapping[str, Any]) -> Any:
    pipe: Any = object.__new__(kind)
    vars(pipe).update(state)
    enable(pipe, **asked)
    return pipe


def _enabled_class(kind: type, held: Held, spelt: Mapping[str, Spelling]) -> type:
    """A class of one pipeline's own. Its name stays: diffusers writes it into what it saves.
    ``spelt`` says how a call's errors call its arguments.
    """
    from fresco_trt.pipelines.diffusers.drawing import draw

    own: Any = kind

    @functools.wraps(own.__call__)
    def call(pipe: Any, *args: Any, **given: Any) -> Any:
        with held.turn, in_python(spelt):
            return draw(pipe, held.source, own.__call__, args, given)

    body = {
        "__call__": call,
        "__copy__": _copied,
        "__reduce_ex__": _reduced,
        "__doc__": own.__doc__,
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "_fresco_held": held,
    }
    # The pipeline's class first: Python then sees one layout, and lets an object change over.
    return type(own.__name__, (own, _Enabled), body)


def _source(pipe: Any, choices: Choices, engines: Path | None, trust: Trust) -> Source:
    hooks = choices.hooks if engines is None else frozenset[str]()
    facts = facts_of(pipe, choices.model, hooks=hooks)
    if engines is None and trust != NO_TRUST:
        raise IncompatibleOptions(
            "--trust or --verify-key without engines",
            expected="them for the engines of a bundle",
            fix="leave them out, or pass engines",
        )
    if engines is None:
        return OwnTransformer.of(pipe, facts, choices)
    if choices.given:
        raise IncompatibleOptions(
            f"{', '.join(choices.given)} with engines={str(engines)!r}",
            expected="engines alone: their plan was decided when they were built",
            fix=f"leave {', '.join(choices.given)} out, or leave engines out",
        )
    return BundleEngines.of(pipe, engines, trust)
