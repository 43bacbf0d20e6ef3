"""One launch a stage: what a stage does for every request, captured as one CUDA graph.

Beside the loop of :mod:`fresco_trt.run.sampler`, whose steps it takes, for callers that ask for no
single step. A plan's decisions are static, so a stage does the same work over the same memory each
time: engine calls, cache, solver, and the transition behind it. What a request brings is copied to
where the graphs read it, and what a stage leaves for the next is kept outside of their memory.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from fresco_trt.backends.cuda_graph import Graph
from fresco_trt.backends.transformer import torch_errors
from fresco_trt.run.finite import FiniteCheck, require_finite
from fresco_trt.run.noise import NoisePyramid
from fresco_trt.run.request import Conditioning, Request, engine_name
from fresco_trt.run.sampler import steps_of_stage
from fresco_trt.run.selection import select
from fresco_trt.run.stage import StageState
from fresco_trt.run.trace import REPLAY, STAGE, TRANSITION, span
from fresco_trt.run.transition import draws

if TYPE_CHECKING:
    from fresco_trt.backends.base import Runner
    from fresco_trt.backends.cuda_device import Device
    from fresco_trt.run.denoise import Denoiser
    from fresco_trt.run.mixed import Mixed

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StageEnd:
    """A stage's end, at ``sigma_next`` on its grid: ``tokens`` and the last step's ``velocity``,
    float32 [B,N,C].

    ``stage`` counts from 0, and ``mixed`` says where the tokens of a mixed stage are. All may be
    read until the next request, and are kept only as a clone. ``seconds`` is the wall clock around
    the stage's launch, which returns before the device is done.
    """

    stage: int
    sigma_next: float
    tokens: Tensor
    velocity: Tensor
    mixed: Mixed | None
    seconds: float


class CapturedStages:
    """Draws whole requests to a denoiser with one launch a stage, bit for bit what its steps draw.

    The first request of a kind launches every stage plainly, the second captures it, later ones
    replay it. A kind is the shapes of what a request brings and its true guidance scale: only the
    last one's graphs are kept. A stage that reads random numbers of the host, or another choice of
    tokens than the plan's, is launched plainly every time, which a warning says, once. So is one
    whose capture fails. One request at a time, see :attr:`is_drawing`.
    """

    def __init__(self, denoiser: Denoiser, device: Device) -> None:
        """Over runners that are queued through graphs of ``device``; see :meth:`of`."""
        self._denoiser, self._device = denoiser, device
        self.is_drawing = False
        """Whether a request is between two of its stages: there is room for one."""
        self._kind: object = None
        self._request: Request | None = None
        self._kept = _Kept()
        self._places: dict[int, Mixed] = {}
        self._calls: dict[int, tuple[tuple[str, str], ...]] = {}
        self._stages = tuple(self._graph(index) for index in range(len(denoiser.plan.stages)))

    @classmethod
    def of(cls, denoiser: Denoiser) -> Self | None:
        """For the runners of a denoiser; None where these are not all queued through CUDA graphs of
        one device: on a CPU, with graphs turned off, or with something around a runner that works
        at every call.
        """
        if denoiser.plan.edit is not None:
            return None  # what follows the draft is the host's to say
        graphs = [graph_of(denoiser.runners[name]) for name in _engines(denoiser)]
        devices = {id(graph.device): graph.device for graph in graphs if graph is not None}
        if len(devices) != 1 or not all(graph is not None and graph.captures for graph in graphs):
            return None
        (device,) = devices.values()
        return None if device.capability() is None else cls(denoiser, device)

    @property
    def is_captured(self) -> bool:
        """Whether the next request, if it is of the same kind, replays every stage."""
        return all(stage.is_captured() for stage in self._stages)

    def draw(
        self, conditioning: Conditioning, noise: int | Sequence[int] | Tensor
    ) -> Generator[StageEnd, None, None]:
        """One request, stage by stage, as :meth:`fresco_trt.run.denoise.Denoiser.steps` draws it.

        A caller may stop at any stage. Raises as the steps do, NonFiniteValues when all stages were
        taken, EngineFailed where a graph does not start, and RuntimeError while another request is
        being drawn.
        """
        request = self._denoiser.request(conditioning, noise)
        if self.is_drawing:
            raise RuntimeError("a request within another; expected one at a time")
        self.is_drawing = True
        try:
            with torch.no_grad(), self._device.stream():
                self._take(request)
            for index in range(len(self._stages)):
                yield self._drawn(index)
            self._require_finite()
        finally:
            self.is_drawing = False

    def forget(self) -> None:
        """Drop the graphs and what they read and write."""
        for stage in self._stages:
            stage.forget()
        self._kind, self._request, self._kept = None, None, _Kept()
        self._places.clear()

    # --- what a request brings ----------------------------------------------------------------

    def _take(self, request: Request) -> None:
        """Copy what a request brings to where the stages read it."""
        given = dict(_tensors(request))
        kind = (
            request.conditioning.true_cfg_scale,
            *((name, value.shape, value.dtype) for name, value in given.items()),
        )
        if kind != self._kind:
            self.forget()
        held = {name: self._kept.keep(name, value) for name, value in given.items()}
        if self._request is None:
            self._request, self._kind = _over(request, held), kind
        elif request.generator is not None:
            self._request = replace(self._request, generator=request.generator)

    # --- what a stage does --------------------------------------------------------------------

    def _drawn(self, index: int) -> StageEnd:
        stage, began = self._stages[index], perf_counter()
        whole = span(REPLAY) if stage.is_captured() else nullcontext()
        with (
            torch.no_grad(),
            _errors_of(stage, index),
            self._device.stream(),
            span(STAGE, index + 1),
            whole,
        ):
            stage.queue(partial(self._launch, index))
        return StageEnd(
            stage=index,
            sigma_next=self._denoiser.plan.stages[index].sigmas[-1],
            tokens=self._kept[f"tokens {index}"],
            velocity=self._kept[f"velocity {index}"],
            mixed=self._places.get(index),
            seconds=perf_counter() - began,
        )

    def _require_finite(self) -> None:
        indices = range(len(self._stages))
        calls = [call for index in indices for call in self._calls[index]]
        require_finite(calls, torch.cat([self._kept[f"extremes {index}"] for index in indices]))

    def _graph(self, index: int) -> Graph:
        denoiser, count = self._denoiser, len(self._denoiser.plan.stages)
        name, reason = f"stage {index + 1} of {count}", _host_work(denoiser, index)
        if reason is not None:
            _LOG.warning("%s runs step by step: %s", name, reason)
        engines = [graph_of(denoiser.runners[each]) for each in _engines(denoiser, index)]
        over = [graph for graph in engines if graph is not None]
        return Graph(name, self._device, captures=reason is None, over=over)

    def _launch(self, index: int) -> None:
        """All that a stage queues. Reads and writes what is kept, and leaves nothing elsewhere."""
        request, finite = self._request, FiniteCheck(waits=True)
        if request is None:
            raise RuntimeError("a stage before what its request brings")
        state = self._entered(request, index)
        *_, last = steps_of_stage(request, state, finite, perf_counter())
        self._calls[index] = finite.calls
        self._kept.keep(f"extremes {index}", finite.extremes())
        self._kept.keep(f"tokens {index}", last.tokens)
        self._kept.keep(f"velocity {index}", last.velocity)
        if index + 1 == len(self._stages):
            return
        with span(TRANSITION, index + 1):
            tokens, mixed = state.cross(request, last.velocity)
        self._kept.keep(f"start {index + 1}", tokens)
        if mixed is not None:
            self._places[index + 1] = self._keep_places(index + 1, mixed)

    def _entered(self, request: Request, index: int) -> StageState:
        if index == 0:
            return StageState.first(request)
        start = self._kept[f"start {index}"]
        return StageState.enter(request, index, start, self._places.get(index))

    def _keep_places(self, index: int, mixed: Mixed) -> Mixed:
        kept, refined, children = (
            self._kept.keep(f"{name} {index}", value)
            for name, value in (
                ("kept", mixed.kept),
                ("refined", mixed.refined),
                ("children", mixed.children),
            )
        )
        return replace(mixed, kept=kept, refined=refined, children=children)


class _Kept:
    """Tensors by name that stay where they are: made when they are first kept, outside of a
    capture, and copied to from then on.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def keep(self, name: str, value: Tensor) -> Tensor:
        """The tensor of that name, now with the values of ``value``."""
        if name in self._tensors:
            return self._tensors[name].copy_(value, non_blocking=True)
        self._tensors[name] = value.clone(memory_format=torch.contiguous_format)
        return self._tensors[name]


def graph_of(runner: Runner) -> Graph | None:
    """What a runner's calls are queued through; None for one that is not queued, or that does
    something else beside at every call.
    """
    graph = getattr(runner, "graph", None)
    return graph if isinstance(graph, Graph) else None


def _engines(denoiser: Denoiser, stage: int | None = None) -> list[str]:
    """The names of the engines of one stage, or of all."""
    return [
        engine_name(index, action)
        for index, action in denoiser.plan.graphs
        if stage is None or index == stage
    ]


def _host_work(denoiser: Denoiser, index: int) -> str | None:
    """What the host does in a stage that a graph could not repeat, in words."""
    transitions = denoiser.plan.transitions[index : index + 1]
    if any(map(draws, transitions)):
        return "the transition after it reads random numbers that the host draws"
    if denoiser.choice is not select and any(each.is_partial for each in transitions):
        return "the tokens after it are chosen by a function of the caller's"
    return None


def _errors_of(stage: Graph, index: int) -> AbstractContextManager[None]:
    """A plain launch says itself what is wrong."""
    if not stage.is_captured():
        return nullcontext()
    return torch_errors(f"replaying stage {index + 1}")


def _tensors(request: Request) -> Iterator[tuple[str, Tensor]]:
    """Everything that a request brings, by name."""
    given, pyramid = request.conditioning, request.pyramid
    for branch, inputs in enumerate(given.branches):
        yield from ((f"input {branch} {name}", inputs[name]) for name in sorted(inputs))
    yield from ((f"reference {index}", each) for index, each in enumerate(given.references))
    yield from ((f"field {level}", each) for level, each in enumerate(pyramid.fields))
    for level, bands in enumerate(pyramid.details):
        yield from ((f"detail {level} {band}", each) for band, each in enumerate(bands))


def _over(request: Request, held: Mapping[str, Tensor]) -> Request:
    """A request that reads the tensors of :func:`_tensors` in ``held``."""
    given, pyramid = request.conditioning, request.pyramid
    branches = [
        {name: held[f"input {branch} {name}"] for name in inputs}
        for branch, inputs in enumerate(given.branches)
    ]
    return replace(
        request,
        conditioning=replace(
            given,
            inputs=branches[0],
            negative=None if given.negative is None else branches[1],
            references=tuple(held[f"reference {index}"] for index in range(len(given.references))),
        ),
        pyramid=NoisePyramid(
            fields=tuple(held[f"field {level}"] for level in range(len(pyramid.fields))),
            details=tuple(
                (held[f"detail {n} 0"], held[f"detail {n} 1"], held[f"detail {n} 2"])
                for n in range(len(pyramid.details))
            ),
        ),
    )
