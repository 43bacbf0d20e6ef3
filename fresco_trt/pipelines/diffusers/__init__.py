"""One line on a diffusers pipeline: its own encoders and decoder around this package's sampler.

Beside ``pipelines/image.py``, for a pipeline that is loaded already. ``enable`` gives that one
object a class of its own, made on the spot below the one it had, and ``disable`` gives it the old
one back: Python looks up ``__call__`` on the class, so that an attribute of the object would not be
asked, and one of diffusers' class would change every pipeline of the process.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.pipelines.diffusers.fit import check_kind, facts_of
from fresco_trt.pipelines.diffusers.sources import BundleEngines, Choices, OwnTransformer
from fresco_trt.plan.config import CacheConfig

if TYPE_CHECKING:
    from pathlib import Path

    from fresco_trt.pipelines.diffusers.sources import Source

__all__ = ["disable", "enable"]


def enable(
    pipe: Any,
    *,
    model: str | None = None,
    stages: int | None = None,
    preset: str | None = None,
    delta: float | None = None,
    shift: float | None = None,
    cache: CacheConfig | str | None = None,
    engines: str | Path | None = None,
) -> None:
    """Make a diffusers FluxPipeline draw with a stage plan, when it is called as ever.

    ``model`` is whose presets it draws by, where several models have the pipeline's dimensions
    (None: the first of them, "flux-tiny" before "flux-tiny-turbo", "flux" before "flux-kontext").
    ``stages`` (None: 3), ``preset``, ``delta``, ``shift`` and ``cache`` are those of
    :func:`fresco_trt.plan`; the size comes with each call. One stage without a preset is the plain
    sampler with the call's ``num_inference_steps``; otherwise the preset decides the steps. A cache
    that needs an SVD basis takes it from a file: "svd,basis=FILE".
    The pipeline's own transformer runs, where it is. With ``engines``, a bundle built from the same
    weights, its engines run in its place, and its plan leaves nothing else to be asked for.

    A pipeline that is enabled already is enabled anew. Raises UnknownModel, PlanError leaves for a
    plan that cannot be, IncompatibleOptions for a pipeline that would lose something,
    CalibrationError for a wrong basis, BundleError leaves for a wrong bundle; the pipeline is then
    as it was. A call then raises IncompatibleOptions for every argument that it cannot honour, and
    ignores none.
    """
    choices = Choices(
        model=model,
        stages=stages,
        preset=preset,
        delta=delta,
        shift=shift,
        cache=None if cache is None else CacheConfig.of(cache),
    )
    kind = _own_class(pipe)
    check_kind(kind)
    source = _source(pipe, choices, engines)
    disable(pipe)
    pipe.__class__ = _enabled_class(kind, source)


def disable(pipe: Any) -> None:
    """Give a pipeline its own class back, and free what was held for it; a plain one stays so."""
    kind = type(pipe)
    if issubclass(kind, _Enabled):
        pipe.__class__ = _own_class(pipe)
        kind._fresco_source.close()


class _Enabled:
    """Marks the classes that are made here, and holds what one pipeline draws with."""

    __slots__ = ()
    _fresco_source: Source


def _own_class(pipe: Any) -> type:
    """The class of a pipeline that is not, or no longer, enabled."""
    kind = type(pipe)
    return kind.__bases__[0] if issubclass(kind, _Enabled) else kind


def _enabled_class(kind: type, source: Source) -> type:
    """A class of one pipeline's own. Its name stays: diffusers writes it into what it saves."""
    from fresco_trt.pipelines.diffusers.drawing import draw

    own: Any = kind

    @functools.wraps(own.__call__)
    def call(pipe: Any, *args: Any, **given: Any) -> Any:
        return draw(pipe, source, own.__call__, args, given)

    body = {
        "__call__": call,
        "__doc__": own.__doc__,
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "_fresco_source": source,
    }
    # The pipeline's class first: Python then sees one layout, and lets an object change over.
    return type(own.__name__, (own, _Enabled), body)


def _source(pipe: Any, choices: Choices, engines: str | Path | None) -> Source:
    facts = facts_of(pipe, choices.model)
    if engines is None:
        return OwnTransformer.of(pipe, facts, choices)
    if choices.given:
        raise IncompatibleOptions(
            f"{', '.join(choices.given)} with engines={str(engines)!r}",
            expected="engines alone: their plan was decided when they were built",
            fix=f"leave {', '.join(choices.given)} out, or leave engines out",
        )
    return BundleEngines.of(pipe, engines)
