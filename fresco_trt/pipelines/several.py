"""Several bundles behind one door: which of them draws a picture is looked up, never guessed.

Engines have static shapes, so that a picture of another size needs another bundle. What is asked
for is found exactly, or refused with the list of what is built; nothing is padded or cropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Self

from fresco_trt.bundle.trust import NO_TRUST
from fresco_trt.errors import (
    FrescoError,
    IncompatibleOptions,
    UnknownModel,
    UnknownPreset,
    UnsupportedSize,
    one_line,
)
from fresco_trt.models.registry import model_facts
from fresco_trt.pipelines.edit import example_source
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.loading import opened, trust_of
from fresco_trt.plan.arguments import optional, place, python_door, size_of, word
from fresco_trt.plan.sizes import format_size

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from fresco_trt.bundle import Bundle
    from fresco_trt.bundle.trust import Trust
    from fresco_trt.plan.sizes import Size

    Loaded = Callable[["WarmUp"], None]

WARMING_PROMPT = "a bell on a plain blue background"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """What one bundle draws: a model's pictures of one size, by one preset.

    `preset` is None for a plan of no preset; only one who names none is given its pictures.
    """

    model: str
    size: Size
    preset: str | None

    @classmethod
    def of(cls, bundle: Bundle) -> Bucket:
        """That of a bundle."""
        plan = bundle.plan
        return cls(model=bundle.manifest.model.name, size=plan.size, preset=plan.preset)

    @property
    def edits(self) -> bool:
        """Whether its model edits a picture; the others draw from a prompt alone."""
        return model_facts(self.model).references > 0

    def __str__(self) -> str:
        """Like `flux-tiny 256x256 balanced`."""
        return f"{self.model} {format_size(self.size)} {self.preset or 'with a plan of its own'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """What it took until a bundle's requests take as long as they will.

    Seconds to `load` its engines, encoders and decoder, of the `first` request, and of the `second`
    one, where that is another: on a GPU it is the one that captures CUDA graphs. None elsewhere.
    """

    bucket: Bucket
    load: float
    first: float
    second: float | None

    @property
    def total(self) -> float:
        """All of them together."""
        return self.load + self.first + (self.second or 0.0)


class FrescoPipelines:
    """Pipelines over several bundles. The first one is drawn with where a request names none.

    Use it as a context manager, or call `close`. Nothing is loaded before `warm_up`.
    """

    def __init__(self, bundles: Sequence[Bundle], trust: Trust = NO_TRUST) -> None:
        """Over bundles that were opened and found fit.

        Raises IncompatibleOptions for none, and for two that draw the same.
        """
        if not bundles:
            raise IncompatibleOptions(
                "no bundle", expected="one or more", fix="pass --engines FOLDER"
            )
        self._bundles: dict[Bucket, Bundle] = {}
        for bundle in bundles:
            bucket = Bucket.of(bundle)
            if bucket in self._bundles:
                folders = (self._bundles[bucket].folder, bundle.folder)
                raise IncompatibleOptions(
                    f"two bundles of {bucket}, {' and '.join(map(str, folders))}",
                    expected="bundles that differ in model, size or preset",
                    fix="leave one of the two out",
                )
            self._bundles[bucket] = bundle
        self._trust = trust
        self._pipelines: dict[Bucket, FrescoPipeline] = {}

    @classmethod
    @python_door
    def from_bundles(
        cls,
        *paths: str | os.PathLike[str],
        trust_native_code: bool = False,
        verify_key: str | Path | None = None,
    ) -> FrescoPipelines:
        """Open and validate bundles; arguments and errors are those of `FrescoPipeline`."""
        trust = trust_of(trust_native_code, verify_key)
        return cls([opened(place("path", path), trust) for path in paths], trust)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """What can be drawn, in the order that the bundles were given in."""
        return tuple(self._bundles)

    def bundle(self, bucket: Bucket) -> Bundle:
        """The bundle of one of `buckets`; KeyError for another."""
        return self._bundles[bucket]

    def __getitem__(self, bucket: Bucket) -> FrescoPipeline:
        """The pipeline of one of `buckets`, loaded if it was not; KeyError for another."""
        if bucket not in self._pipelines:
            self._pipelines[bucket] = FrescoPipeline.over(self._bundles[bucket], self._trust)
        return self._pipelines[bucket]

    @python_door
    def find(
        self,
        *,
        model: str | None = None,
        size: Size | str | None = None,
        preset: str | None = None,
        edits: bool | None = None,
    ) -> Bucket:
        """The bucket that has all that is named; of several, the first. `edits` true looks among
        those that edit a picture, false among those that draw from a prompt alone.

        Raises IncompatibleOptions where there are none of these, and UnknownModel, UnsupportedSize
        or UnknownPreset, with what is built in its place.
        """
        left = [bucket for bucket in self._bundles if edits in (None, bucket.edits)]
        if not left:
            raise IncompatibleOptions(
                f"only bundles that {'draw from a prompt alone' if edits else 'edit pictures'}",
                expected=f"one that {'edits pictures' if edits else 'draws from a prompt alone'}",
                fix=f"build one such as {'flux-kontext' if edits else 'flux-tiny'}",
            )
        if optional(word, "model", model) is not None:
            models = dict.fromkeys(bucket.model for bucket in left)
            left = [bucket for bucket in left if bucket.model == model]
            _require(left, UnknownModel, f"the model {_short(str(model))}", models)
        if (asked := optional(size_of, "size", size)) is not None:
            sizes = dict.fromkeys(format_size(bucket.size) for bucket in left)
            left = [bucket for bucket in left if bucket.size == asked]
            _require(left, UnsupportedSize, f"the size {format_size(asked)}", sizes)
        if optional(word, "preset", preset) is not None:
            presets = dict.fromkeys(bucket.preset for bucket in left if bucket.preset)
            left = [bucket for bucket in left if bucket.preset == preset]
            _require(left, UnknownPreset, f"the preset {_short(str(preset))}", presets)
        return left[0]

    def warm_up(self, told: Loaded | None = None) -> tuple[WarmUp, ...]:
        """Load every bundle and draw with it once, on a GPU twice; what each of them cost.

        `told` is called after each. Raises as `FrescoPipeline.from_bundle` and its requests do.
        """
        return tuple(self._warmed(told))

    def _warmed(self, told: Loaded | None) -> Iterator[WarmUp]:
        for bucket in self._bundles:
            cost = _warm_up(self, bucket)
            if told is not None:
                told(cost)
            yield cost

    def close(self) -> None:
        """Free all engines."""
        for pipeline in self._pipelines.values():
            pipeline.close()
        self._pipelines.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _warm_up(pipelines: FrescoPipelines, bucket: Bucket) -> WarmUp:
    began = perf_counter()
    pipeline = pipelines[bucket]
    load = perf_counter() - began
    source = example_source(pipeline.bundle)
    first = pipeline(WARMING_PROMPT, image=source).seconds.total
    cost = WarmUp(bucket=bucket, load=load, first=first, second=None)
    if pipeline.device == "cpu":
        return cost
    return replace(cost, second=pipeline(WARMING_PROMPT, image=source).seconds.total)


def _require(
    left: list[Bucket], kind: type[FrescoError], asked: str, built: Iterable[str | None]
) -> None:
    """Refuse what is not built, in the order that things were built in."""
    if left:
        return
    names = ", ".join(each for each in built if each is not None)
    raise kind(
        f"{asked}, which is not built here",
        expected=f"one that is built: {names or 'none has a name; leave it out'}",
        fix="ask for one of those, or add a bundle of it with 'fresco-trt build'",
    )


def _short(text: str) -> str:
    line = one_line(text)
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
