"""Prompt in, picture out: a bundle's engines, its prompt encoders and its decoder, put together.

This is the request side of the data path. It opens a bundle (validated first), loads one runner
for each engine, and drives the sampler; progress, previews and cancelling belong to the caller.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from threading import RLock
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn, Self

from fresco_trt.bundle.trust import NO_TRUST
from fresco_trt.errors import IncompatibleOptions, error_context
from fresco_trt.pipelines.checks import check_cancel, check_seed, guidance_of
from fresco_trt.pipelines.edit import check_source, source_latents, source_picture
from fresco_trt.pipelines.loading import basis_of, load_runners, opened, trust_of
from fresco_trt.pipelines.result import Result, Seconds, StepTime, time_of_step
from fresco_trt.plan.arguments import (
    flag,
    function,
    in_python,
    optional,
    place,
    python_door,
    word,
)
from fresco_trt.run.trace import DECODE, REQUEST, TEXT, span

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import Tensor

    from fresco_trt.backends.base import Runner
    from fresco_trt.bundle import Bundle
    from fresco_trt.bundle.trust import Trust
    from fresco_trt.models.family import Encoder
    from fresco_trt.pipelines.edit import Source
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.captured import CapturedStages, StageEnd
    from fresco_trt.run.request import Conditioning
    from fresco_trt.run.sampler import Step
    from fresco_trt.run.selection import Choice

    OnStep = Callable[[Step], None]
    OnStage = Callable[[int, Image], None]
    Cancel = Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """The last step or stage of a request, the seconds inside engines and those in callbacks, and
    the steps' times where they were taken one by one.
    """

    last: Step | StageEnd
    engines: float
    apart: float
    steps: tuple[StepTime, ...] = ()


class FrescoPipeline:
    """A loaded bundle. Use it as a context manager, or call `close` to free its engines.

    One request at a time: runners own their output buffers, so that other threads wait for their
    turn. Nothing else is shared between requests. `copy.copy` gives a pipeline over the same
    engines, which the first one keeps; engines cannot be pickled.
    """

    def __init__(self, bundle: Bundle, runners: Mapping[str, Runner], device: str) -> None:
        """Over runners that the caller entered; `device` is where their outputs live."""
        from fresco_trt.models.registry import family_of, model_facts
        from fresco_trt.run.denoise import Denoiser

        self.bundle = bundle
        self._facts = model_facts(bundle.manifest.model.name)
        text_tokens = bundle.manifest.text_tokens
        components = family_of(self._facts).components
        with error_context(f"bundle {bundle.folder}"):
            self._prompt = components.prompt_encoder(bundle.pipeline_folder, text_tokens)
            self._decoder = components.decoder(bundle.pipeline_folder)
        self._denoiser = Denoiser.of(
            self._facts,
            bundle.plan,
            runners,
            text_tokens=text_tokens,
            device=device,
            basis=basis_of(bundle, device),
        )
        self._encoder: Encoder | None = None  # of the first edit
        self._scope = ExitStack()
        self._stages: CapturedStages | None = None
        # Taken again by a callback that draws: the sampler lets others run between two steps.
        self._turn = RLock()

    @classmethod
    @python_door
    def from_bundle(
        cls,
        path: str | os.PathLike[str],
        *,
        trust_native_code: bool = False,
        verify_key: str | Path | None = None,
    ) -> FrescoPipeline:
        """Open, validate and load a bundle; needs neither the exporter nor a model hub.

        Engines that are native code (inductor, TensorRT) are loaded if this user built them here.
        Those of others need `trust_native_code`, or a signature by the key in the PEM file
        `verify_key`, which then is required of any bundle; digests vouch for nobody.

        Raises a BundleError for a bundle that cannot be used here (see `fresco_trt.bundle`),
        NativeCodeNotTrusted and BundleNotSigned among them,
        BackendUnavailable where its engine library is not installed, and WeightsNotFound for
        prompt encoders or a decoder that cannot be loaded.
        """
        trust = trust_of(trust_native_code, verify_key)
        return cls.over(opened(place("path", path), trust), trust)

    @classmethod
    def over(cls, bundle: Bundle, trust: Trust = NO_TRUST) -> FrescoPipeline:
        """Load the engines of a bundle that was opened and found fit; raises as `from_bundle`."""
        from fresco_trt.backends import backend

        library = backend(bundle.manifest.backend.name)
        with ExitStack() as scope:
            with bundle.unchanged():
                runners = load_runners(bundle, library, scope, trust)
                pipeline = cls(bundle, runners, library.describe().device)
            pipeline._scope = scope.pop_all()
        return pipeline

    @property
    def plan(self) -> StagePlan:
        """The stage plan the engines were built for."""
        return self.bundle.plan

    @property
    def runners(self) -> Mapping[str, Runner]:
        """The loaded engines by name."""
        return self._denoiser.runners

    @property
    def device(self) -> str:
        """Where the engines run: "cpu" or "cuda"."""
        return str(self._denoiser.device)

    def prompt_tokens(self, prompt: str) -> int:
        """How many tokens of its own a prompt has, at most as many as the engines take.

        Raises PlanError for a string that is not text.
        """
        with self._turn, in_python():
            return self._prompt.tokens(word("prompt", prompt))

    def __call__(
        self,
        prompt: str,
        *,
        image: Source | None = None,
        seed: int = 0,
        guidance: float | None = None,
        on_step: OnStep | None = None,
        on_stage: OnStage | None = None,
        record_steps: bool = False,
        cancel: Cancel | None = None,
    ) -> Result:
        """Draw one picture.

        `image` is the source of an edit, for models that edit and only for these: a picture of PIL,
        the path of one, or its file in binary mode. It is brought to the built size. `seed` is from
        0 to `MAX_SEED`; `guidance` (None: the model's default) only for models that take it.
        `on_step` is called after each step; `on_stage(stage, picture)` after each stage (from 1)
        but the last, with the stage's clean estimate decoded at its own size; of a mixed stage, at
        its fine grid's, with what is still coarse repeated over its place. `cancel()` is asked
        after each step; if it is true the request ends there, and its memory is free.

        On a GPU whose engines are replayed as CUDA graphs, each stage is one launch from the second
        request on, the result's `steps` are empty, and `cancel` is asked after each stage.
        `on_step` or `record_steps` draws step by step there too: the same picture, with the steps'
        times.

        Raises PlanError for a seed or guidance out of range, PictureInvalid for a source that
        cannot be read, PromptTooLong for a prompt that some stage takes less of,
        IncompatibleOptions for a source or guidance that the model does not take, RunError leaves
        from an engine, Cancelled if `cancel` says so; warns of what the encoders cannot read
        (PromptWarning) and of what is changed of the source (SourceWarning).
        """
        seed = check_seed(seed)
        scale = guidance_of(self._facts, guidance)
        word("prompt", prompt)
        with in_python():
            check_source(self._facts, image)
            source = None if image is None else source_picture(image, self.plan.size)
        for name, told in (("on_step", on_step), ("on_stage", on_stage), ("cancel", cancel)):
            optional(function, name, told)
        by_steps = flag("record_steps", record_steps) or on_step is not None
        with self._turn, in_python(), span(REQUEST):
            check_cancel(cancel)  # it may have waited for its turn
            clock = _Clock()
            with span(TEXT):
                conditioning = self._conditioning(prompt, scale, source)
            text, stages = clock.lap(), None if by_steps else self._captured()
            if stages is None:
                taken = self._by_steps(conditioning, seed, on_step, on_stage, cancel)
            else:
                taken = self._by_stages(stages, conditioning, seed, on_stage, cancel)
            return self._result(seed, taken, text, clock)

    def with_runners(
        self, runners: Mapping[str, Runner], *, choice: Choice | None = None
    ) -> FrescoPipeline:
        """The same bundle, encoders and decoder over other runners, which the caller keeps open.

        Their outputs must live on the same device. `choice` chooses the tokens that are refined,
        in place of the plan's rules (see `fresco_trt.run.selection.select`).
        """
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        chosen = self._denoiser.choice if choice is None else choice
        other._denoiser = replace(self._denoiser, runners=runners, choice=chosen)
        other._scope, other._stages = ExitStack(), None
        return other

    def close(self) -> None:
        """Free the engines, after the request that is being drawn; no other can be afterwards."""
        with self._turn:
            if self._stages is not None:
                self._stages.forget()  # before the engines that its graphs run
            self._stages = None
            self._scope.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __copy__(self) -> FrescoPipeline:
        return self.with_runners(self.runners)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise IncompatibleOptions(
            "a deep copy or a pickle of a pipeline with engines",
            expected="a pipeline in the process that loaded its engines",
            fix=f"open the bundle again, FrescoPipeline.from_bundle({str(self.bundle.folder)!r})",
        )

    # --- parts of a request -------------------------------------------------------------------

    def _captured(self) -> CapturedStages | None:
        """What draws with one launch a stage; None where nothing does, and within another request,
        whose stages it would overwrite.
        """
        from fresco_trt.run.captured import CapturedStages

        if self._stages is None:
            self._stages = CapturedStages.of(self._denoiser)
        return None if self._stages is None or self._stages.is_drawing else self._stages

    def _by_steps(
        self,
        conditioning: Conditioning,
        seed: int,
        on_step: OnStep | None,
        on_stage: OnStage | None,
        cancel: Cancel | None,
    ) -> _Taken:
        steps: list[Step] = []
        apart = 0.0
        for step in self._denoiser.steps(conditioning, seed):
            steps.append(step)
            check_cancel(cancel)
            asked = perf_counter()
            self._tell(step, on_step, on_stage)
            apart += perf_counter() - asked
        engines = sum(step.engine_seconds for step in steps)
        times = tuple(map(time_of_step, steps))
        return _Taken(last=steps[-1], engines=engines, apart=apart, steps=times)

    def _by_stages(
        self,
        stages: CapturedStages,
        conditioning: Conditioning,
        seed: int,
        on_stage: OnStage | None,
        cancel: Cancel | None,
    ) -> _Taken:
        engines = apart = 0.0
        for end in stages.draw(conditioning, seed):
            engines += end.seconds
            check_cancel(cancel)
            asked = perf_counter()
            if on_stage is not None and end.stage + 1 < len(self.plan.stages):
                on_stage(end.stage + 1, _image(self._decoder(self._estimate(end))))
            apart += perf_counter() - asked
        return _Taken(last=end, engines=engines, apart=apart)

    def _result(self, seed: int, taken: _Taken, text: float, clock: _Clock) -> Result:
        # Where engines run asynchronously, this copy is what waits for them.
        latents = self._denoiser.latents(taken.last).cpu()
        denoise = clock.lap() - taken.apart
        with span(DECODE):
            images = [_image(self._decoder(latents))]
        decode = clock.lap()
        seconds = Seconds(
            total=clock.total(), text=text, denoise=denoise, engines=taken.engines, decode=decode
        )
        nfe, steps = self.plan.nfe, taken.steps
        return Result(images=images, seed=seed, nfe=nfe, seconds=seconds, steps=steps)

    def _conditioning(self, prompt: str, scale: float | None, source: Image | None) -> Conditioning:
        import torch

        from fresco_trt.models.registry import family_of
        from fresco_trt.run.request import Conditioning
        from fresco_trt.run.text import check_text

        own = self._prompt.tokens(prompt) if self.plan.cuts_text else None
        check_text(self.plan, own, self.bundle.manifest.text_tokens)
        inputs = self._prompt(prompt)
        if scale is not None:
            inputs["guidance"] = torch.tensor([scale], dtype=torch.float32)
        references: tuple[Tensor, ...] = ()
        if source is not None:
            if self._encoder is None:
                components = family_of(self._facts).components
                self._encoder = components.encoder(self.bundle.pipeline_folder)
            references = (source_latents(self._encoder, source),)
        return Conditioning(inputs=inputs, prompt_tokens=own, references=references)

    def _tell(self, step: Step, on_step: OnStep | None, on_stage: OnStage | None) -> None:
        ends = on_stage is not None and self._ends_coarse_stage(step)
        # Before a callback that may draw, and so overwrite the velocity.
        estimate = self._estimate(step) if ends else None
        if on_step is not None:
            on_step(step)
        if on_stage is not None and estimate is not None:
            on_stage(step.stage + 1, _image(self._decoder(estimate)))

    def _ends_coarse_stage(self, step: Step) -> bool:
        coarse = step.stage + 1 < len(self.plan.stages)
        return coarse and step.sigma_next == self.plan.stages[step.stage].sigmas[-1]

    def _estimate(self, step: Step | StageEnd) -> Tensor:
        """The clean estimate at a step's end, latents [1,C,H,W] on the stage's grid."""
        from fresco_trt.run.transition import estimate_x0

        x0 = estimate_x0(step.tokens, step.velocity, step.sigma_next)
        if step.mixed is not None:
            return step.mixed.picture(x0, self._denoiser.patchifier)
        return self._denoiser.patchifier.unpack(x0, self.plan.stages[step.stage].grid)


class _Clock:
    """Wall time in laps."""

    def __init__(self) -> None:
        self._began = self._last = perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._last = self._last, perf_counter()
        return self._last - before

    def total(self) -> float:
        """Seconds from the start to the last lap."""
        return self._last - self._began


def _image(pixels: npt.NDArray[np.uint8]) -> Image:
    from PIL.Image import fromarray

    return fromarray(pixels[0])
