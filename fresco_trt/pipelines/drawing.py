"""One run of the engines: as many pictures at once as they take, from noise to pixels.

Between a pipeline, which says what is drawn, and the sampler. A picture owns its prompt, its noise
and who waits for it, so that those of one run may belong to different requests: one that nobody
wants any more changes nothing of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING

from fresco_trt.pipelines.checks import cancelled, draws_clips
from fresco_trt.pipelines.result import Clock, Result, Seconds, StepTime, time_of_step
from fresco_trt.pipelines.selective import edited
from fresco_trt.run.trace import DECODE, span

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import Tensor

    from fresco_trt.models.family import Decoder
    from fresco_trt.run.captured import CapturedStages, StageEnd
    from fresco_trt.run.denoise import Denoiser
    from fresco_trt.run.request import Conditioning
    from fresco_trt.run.sampler import Step

    OnStep = Callable[[Step], None]
    OnStage = Callable[[int, Image], None]
    Cancel = Callable[[], bool]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """One picture that is wanted: the inputs of its prompt, batch 1, and its seed.

    ``on_stage`` gets its previews; once ``cancel()`` is true nobody wants it. ``source``, RGB of
    the built size, is what an edit that touches nothing gives back.
    """

    conditioning: Conditioning
    seed: int
    on_stage: OnStage | None = None
    cancel: Cancel | None = None
    source: Image | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The pictures of a run in order, None for one that was cancelled, and its wall seconds.
    ``masks`` say what was edited, of engines that refine only that. Of engines that draw clips an
    image is the middle one of the clip, whose ``frames`` are all of it.

    ``denoise`` is without what callbacks took, ``engines`` its share inside them. ``steps`` is
    empty where each stage was one launch.
    """

    images: list[Image | None]
    denoise: float
    engines: float
    decode: float
    steps: tuple[StepTime, ...]
    masks: tuple[Image, ...] = ()
    frames: tuple[list[Image], ...] = ()


@dataclass(kw_only=True, slots=True, eq=False)
class Run:
    """Pictures that are drawn together. ``number`` counts a call's runs from 1.

    With fewer pictures than the ``batch`` that the engines take the last one is repeated; what is
    drawn of the copies is dropped.
    """

    denoiser: Denoiser
    decoder: Decoder
    pictures: Sequence[Picture]
    batch: int
    number: int = 1
    on_step: OnStep | None = None
    _gone: set[int] = field(default_factory=set)
    _apart: float = 0.0

    def drawn(self, stages: CapturedStages | None) -> Drawn:
        """All of them, by one launch a stage with ``stages``, else step by step.

        Raises Cancelled once nobody wants any of them, and what the sampler raises.
        """
        clock = Clock()
        last, engines, steps = self._by_steps() if stages is None else self._by_stages(stages)
        selective = None
        if self.denoiser.plan.edit is not None:
            selective = edited(self.denoiser, last, self.pictures[0].conditioning.references[0])
        whole = self.denoiser.latents(last) if selective is None else selective.latents
        # Where engines run asynchronously, this copy is what waits for them.
        latents = None if whole is None else whole.cpu()
        denoise = clock.lap() - self._apart
        with span(DECODE):
            wanted = range(len(self.pictures))
            clips = [None if i in self._gone else self._finished(latents, i) for i in wanted]
        is_clip = draws_clips(self.denoiser.plan)
        return Drawn(
            images=[None if clip is None else middle(clip) for clip in clips],
            denoise=denoise,
            engines=engines,
            decode=clock.lap(),
            steps=steps,
            masks=() if selective is None else (selective.mask,),
            frames=tuple(clip for clip in clips if clip is not None) if is_clip else (),
        )

    def _by_steps(self) -> tuple[Step, float, tuple[StepTime, ...]]:
        steps: list[Step] = []
        for step in self.denoiser.steps(self._conditioning(), self._seeds()):
            steps.append(step)
            self._check_wanted()
            asked = perf_counter()
            # Before a callback that may draw, and so overwrite the velocity.
            estimate = self._preview(step) if self._ends_coarse_stage(step) else None
            if self.on_step is not None:
                self.on_step(step)
            if estimate is not None:
                self._tell(step.stage + 1, estimate)
            self._apart += perf_counter() - asked
        engines = sum(step.engine_seconds for step in steps)
        return steps[-1], engines, tuple(time_of_step(step, self.number) for step in steps)

    def _by_stages(self, stages: CapturedStages) -> tuple[StageEnd, float, tuple[()]]:
        engines = 0.0
        for end in stages.draw(self._conditioning(), self._seeds()):
            engines += end.seconds
            self._check_wanted()
            asked = perf_counter()
            if end.stage + 1 < len(self.denoiser.plan.stages):
                estimate = self._preview(end)
                if estimate is not None:
                    self._tell(end.stage + 1, estimate)
            self._apart += perf_counter() - asked
        return end, engines, ()

    # --- what the engines take ----------------------------------------------------------------

    def _rows(self) -> Iterator[Picture]:
        """The pictures, and copies of the last up to the batch."""
        yield from self.pictures
        yield from [self.pictures[-1]] * (self.batch - len(self.pictures))

    def _conditioning(self) -> Conditioning:
        return joined([each.conditioning for each in self._rows()])

    def _seeds(self) -> tuple[int, ...]:
        return tuple(each.seed for each in self._rows())

    # --- who waits ----------------------------------------------------------------------------

    def _check_wanted(self) -> None:
        """Note whose picture is not wanted any more. Raises Cancelled if no picture is."""
        said: dict[int, bool] = {}  # several pictures may have one function, asked once
        for index, picture in enumerate(self.pictures):
            asked = picture.cancel
            if asked is None or index in self._gone:
                continue
            if id(asked) not in said:
                said[id(asked)] = asked()
            if said[id(asked)]:
                self._gone.add(index)
        if len(self._gone) == len(self.pictures):
            raise cancelled()

    def _ends_coarse_stage(self, step: Step) -> bool:
        plan = self.denoiser.plan
        coarse = step.step + 1 < step.steps_total
        return coarse and step.sigma_next == plan.stages[step.stage].sigmas[-1]

    def _preview(self, end: Step | StageEnd) -> Tensor | None:
        """The clean estimate of a stage's end, for whoever wants to see it."""
        asked = any(each.on_stage is not None for each in self.pictures)
        return estimate(self.denoiser, end) if asked else None

    def _tell(self, stage: int, latents: Tensor) -> None:
        for index, picture in enumerate(self.pictures):
            if picture.on_stage is not None and index not in self._gone:
                picture.on_stage(stage, middle(self._decoded(latents, index)))

    def _finished(self, latents: Tensor | None, index: int) -> list[Image] | None:
        """The picture of its latents, or the frames of a clip; of an edit that has none, because it
        touches nothing, the source.
        """
        source = self.pictures[index].source
        if latents is None:
            return None if source is None else [source]
        return self._decoded(latents, index)

    def _decoded(self, latents: Tensor, index: int) -> list[Image]:
        """The frames of one of a run, decoded by itself, as it is when it is drawn alone."""
        return _images(self.decoder(latents[index : index + 1]))


def joined(each: Sequence[Conditioning]) -> Conditioning:
    """The inputs of several pictures, batch 1 each, as those of one run.

    Raises ValueError for true guidance scales that differ: a run has one.
    """
    import torch

    from fresco_trt.run.request import Conditioning

    first, owns = each[0], [one.prompt_tokens for one in each]
    if len(each) == 1:
        return first
    if len(scales := {one.true_cfg_scale for one in each}) > 1:
        raise ValueError(f"true guidance scales {sorted(scales)} in one run; expected one")

    def rows(branch: int) -> dict[str, Tensor]:
        return {
            name: torch.cat([one.branches[branch][name] for one in each]) for name in first.inputs
        }

    known = [own for own in owns if own is not None]
    return Conditioning(
        inputs=rows(0),
        negative=None if first.negative is None else rows(1),
        true_cfg_scale=first.true_cfg_scale,
        references=tuple(
            torch.cat([one.references[index] for one in each])
            for index in range(len(first.references))
        ),
        prompt_tokens=max(known) if len(known) == len(owns) else None,
    )


def estimate(denoiser: Denoiser, end: Step | StageEnd) -> Tensor:
    """The clean estimate at a step's end, latents [B,C,H,W] on the stage's grid."""
    from fresco_trt.run.transition import estimate_x0

    x0 = estimate_x0(end.tokens, end.velocity, end.sigma_next)
    if end.mixed is not None:
        return end.mixed.picture(x0, denoiser.patchifier)
    return denoiser.patchifier.unpack(x0, denoiser.plan.stages[end.stage].grid)


# --- several runs of one call -----------------------------------------------------------------


def tell_numbered(on_stage: OnStage, number: int, stage: int, image: Image) -> None:
    """A preview that says which picture of the call it is of."""
    image.info["picture"] = number
    on_stage(stage, image)


def counting(on_step: OnStep | None, run: int, runs: int) -> OnStep | None:
    """What is told of each step of a run, counted from 0, as one of all runs' steps."""
    if on_step is None or runs == 1:
        return on_step

    def tell(step: Step) -> None:
        done = run * step.steps_total
        on_step(replace(step, step=done + step.step, steps_total=runs * step.steps_total))

    return tell


def result_of(
    seeds: tuple[int, ...], nfe: int, drawn: Sequence[Drawn], text: float, total: float
) -> Result:
    """All runs of a call, none of whose pictures was cancelled: had their one ``cancel`` spoken, no
    run would have ended.
    """
    seconds = Seconds(
        total=total,
        text=text,
        denoise=sum(each.denoise for each in drawn),
        engines=sum(each.engines for each in drawn),
        decode=sum(each.decode for each in drawn),
    )
    return Result(
        images=[
            image
            for each in drawn
            for image in each.images
            if image is not None and not each.frames
        ],
        seeds=seeds,
        nfe=nfe,
        seconds=seconds,
        steps=tuple(step for each in drawn for step in each.steps),
        runs=tuple(len(each.images) for each in drawn),
        masks=[mask for each in drawn for mask in each.masks],
        frames=[clip for each in drawn for clip in each.frames],
    )


def middle(frames: Sequence[Image]) -> Image:
    """The frame in the middle of a clip; a picture's only one."""
    return frames[len(frames) // 2]


def _images(pixels: npt.NDArray[np.uint8]) -> list[Image]:
    """The frames of a decoded clip [1,F,H,W,3], or the one of a picture [1,H,W,3]."""
    from PIL.Image import fromarray

    return [fromarray(each) for each in (pixels if pixels.ndim == 4 else pixels[0])]
