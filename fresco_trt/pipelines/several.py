"""Several bundles behind one door: which of them draws a picture is looked up, never guessed.

Engines have static shapes, so that a picture of another size needs another bundle. What is asked
for is found exactly, or refused with the list of what is built; nothing is padded or cropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from threading import Lock
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
from fresco_trt.pipelines.checks import check_pictures
from fresco_trt.pipelines.cost import Meter, StageCost
from fresco_trt.pipelines.edit import example_source
from fresco_trt.pipelines.held import Hold, Served
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.loading import Engines, opened, trust_of
from fresco_trt.pipelines.selective import example_masks, whole_edits_asked
from fresco_trt.plan.arguments import flag, optional, place, python_door, size_of, whole, word
from fresco_trt.plan.sizes import format_size
from fresco_trt.run.request import engine_name

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from fresco_trt.bundle import Bundle
    from fresco_trt.bundle.trust import Trust
    from fresco_trt.pipelines.result import Result
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
    `host_bytes` and `device_bytes` are held since, by the process and of the GPU, see
    `fresco_trt.pipelines.cost.Cost`; `stages` says what of it each stage took.
    """

    bucket: Bucket
    load: float
    first: float
    second: float | None
    host_bytes: int | None = None
    device_bytes: int | None = None
    stages: tuple[StageCost, ...] = ()

    @property
    def total(self) -> float:
        """All of them together."""
        return self.load + self.first + (self.second or 0.0)


class FrescoPipelines:
    """Pipelines over several bundles. The first one is drawn with where a request names none.

    Use it as a context manager, or call `close`. Nothing is loaded before `warm_up`. Other bundles
    may be put in their place while requests run: `replace`, and `hold` for each request.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        trust: Trust = NO_TRUST,
        *,
        lazy: bool = False,
        contexts: int = 1,
    ) -> None:
        """Over bundles that were opened and found fit; `lazy` and `contexts` as those of
        `FrescoPipeline`.

        Raises IncompatibleOptions for none, for two that draw the same, and for one that draws
        clips.
        """
        self._trust, self._lazy, self._contexts = trust, lazy, contexts
        self._served = _in_service(bundles, self.pipeline_of)
        self._looking, self._replacing = Lock(), Lock()
        self._closed = False

    @classmethod
    @python_door
    def from_bundles(
        cls,
        *paths: str | os.PathLike[str],
        trust_native_code: bool = False,
        verify_key: str | Path | None = None,
        lazy: bool = False,
        contexts: int = 1,
    ) -> FrescoPipelines:
        """Open and validate bundles; arguments and errors are those of `FrescoPipeline`."""
        trust = trust_of(trust_native_code, verify_key)
        late, count = flag("lazy", lazy), whole("contexts", contexts)
        bundles = [opened(place("path", path), trust) for path in paths]
        return cls(bundles, trust, lazy=late, contexts=count)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """What can be drawn, in the order that the bundles were given in."""
        return tuple(self._served)

    def bundle(self, bucket: Bucket) -> Bundle:
        """The bundle of one of `buckets`; KeyError for another."""
        return self._served[bucket].bundle

    def __getitem__(self, bucket: Bucket) -> FrescoPipeline:
        """The pipeline of one of `buckets`, loaded if it was not; KeyError for another.

        `replace` closes it, after the request that is being drawn: see `hold`.
        """
        return self._served[bucket].pipeline

    def hold(self, bucket: Bucket) -> Hold:
        """Keep the bundle of one of `buckets` for a request; KeyError for another.

        `with pipelines.hold(bucket) as pipeline:` draws with one that `replace` does not close
        before the end of the block.
        """
        with self._looking:
            return self._served[bucket].hold()

    def pipeline_of(self, bundle: Bundle) -> FrescoPipeline:
        """Load a bundle. A subclass may draw with something else."""
        return FrescoPipeline.over(bundle, self._trust, lazy=self._lazy, contexts=self._contexts)

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
        left = [bucket for bucket in self._served if edits in (None, bucket.edits)]
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
        for served in tuple(self._served.values()):
            cost = _warm_up(served)
            if told is not None:
                told(cost)
            yield cost

    @python_door
    def replace(self, *paths: str | os.PathLike[str]) -> tuple[WarmUp, ...]:
        """Draw with these bundles from now on, in place of those that there are; what it cost.

        May be called while requests run. Bundles that are there already stay as they are. The
        others are opened, checked, loaded and warmed up beside them; then all new requests go to
        the new ones. An old one is closed when the last request that holds it has ended, see
        `hold`. Until then the memory has to hold both.

        Raises as `from_bundles` and `warm_up`, and RuntimeError once `close` was called: then all
        is as it was.
        """
        return self.replace_with([opened(place("path", path), self._trust) for path in paths])

    def replace_with(self, bundles: Sequence[Bundle]) -> tuple[WarmUp, ...]:
        """As `replace`, with bundles that were opened and found fit."""
        with self._replacing:
            before = self._served
            after = _in_service(bundles, self.pipeline_of)
            for bucket, served in after.items():
                if bucket in before and _are_same(before[bucket].bundle, served.bundle):
                    after[bucket] = before[bucket]
            fresh = [each for bucket, each in after.items() if before.get(bucket) is not each]
            try:
                costs = tuple(map(_warm_up, fresh))
                with self._looking:
                    if self._closed:
                        raise RuntimeError("these pipelines were closed meanwhile")
                    self._served = after
            except BaseException:
                for each in fresh:
                    each.close()
                raise
        for bucket, served in before.items():
            if after.get(bucket) is not served:
                served.retire()
        return costs

    def close(self) -> None:
        """Free all engines."""
        with self._looking:
            self._closed = True
        for served in self._served.values():
            served.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _in_service(
    bundles: Sequence[Bundle], load: Callable[[Bundle], FrescoPipeline]
) -> dict[Bucket, Served]:
    """Bundles by what they draw, in their order; nothing is loaded."""
    if not bundles:
        raise IncompatibleOptions("no bundle", expected="one or more", fix="pass --engines FOLDER")
    found: dict[Bucket, Served] = {}
    for bundle in bundles:
        check_pictures(bundle.plan)
        bucket = Bucket.of(bundle)
        if bucket in found:
            folders = (found[bucket].bundle.folder, bundle.folder)
            raise IncompatibleOptions(
                f"two bundles of {bucket}, {' and '.join(map(str, folders))}",
                expected="bundles that differ in model, size or preset",
                fix="leave one of the two out",
            )
        found[bucket] = Served(bundle, load)
    return found


def _are_same(before: Bundle, after: Bundle) -> bool:
    """Whether these are the same files, and not only equal ones: an old pipeline may load more."""
    return before == after and before.seen == after.seen


def _warm_up(served: Served) -> WarmUp:
    meter = Meter()
    pipeline = served.pipeline
    load = meter.cost().seconds
    source, masks = example_source(pipeline.bundle), example_masks(pipeline.plan)

    def draw() -> list[Result]:
        """One picture, or of an edit one for each stage that may follow the draft."""
        with whole_edits_asked():
            return [pipeline(WARMING_PROMPT, image=source, mask=mask) for mask in masks]

    first = draw()
    second = [] if pipeline.device == "cpu" else draw()
    cost = meter.cost()
    return WarmUp(
        bucket=Bucket.of(served.bundle),
        load=load,
        first=_mean(first),
        second=_mean(second) if second else None,
        host_bytes=cost.host_bytes,
        device_bytes=cost.device_bytes,
        stages=tuple(_by_stage(pipeline, first)),
    )


def _mean(drawn: Sequence[Result]) -> float:
    return sum(each.seconds.total for each in drawn) / len(drawn)


def _by_stage(pipeline: FrescoPipeline, first: Sequence[Result]) -> Iterator[StageCost]:
    plan, runners = pipeline.plan, pipeline.runners
    loads = runners.costs if isinstance(runners, Engines) else {}
    for index in range(len(plan.stages)):
        names = [engine_name(each, action) for each, action in plan.graphs if each == index]
        costs = [loads[name] for name in names if name in loads]
        # Of those that take the stage one has it first: an edit's draft is in all of them.
        each = [[step.seconds for step in one.steps if step.stage == index + 1] for one in first]
        steps = next(filter(None, each), [])
        if costs:
            load = reduce(add, costs)
            yield StageCost(stage=index + 1, load=load, first=sum(steps) if steps else None)


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
