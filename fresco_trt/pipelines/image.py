"""Prompt in, picture out: a bundle's engines, its prompt encoders and its decoder, put together.

This is the request side of the data path. It opens a bundle (validated first), loads one runner
for each engine, and drives the sampler; progress, previews and cancelling belong to the caller.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn, Self

from fresco_trt.bundle.in_use import FilesInUse
from fresco_trt.bundle.trust import NO_TRUST
from fresco_trt.errors import IncompatibleOptions, error_context
from fresco_trt.pipelines.checks import NO_PROMPT, check_cancel
from fresco_trt.pipelines.drawing import Drawn, Picture, Run, counting, result_of, tell_numbered
from fresco_trt.pipelines.edit import source_latents
from fresco_trt.pipelines.loading import basis_of, load_contexts, opened, trust_of
from fresco_trt.pipelines.request import Asked, GenerateRequest
from fresco_trt.pipelines.result import Clock, Result
from fresco_trt.pipelines.selective import mask_latents
from fresco_trt.pipelines.turns import Turns
from fresco_trt.plan.arguments import (
    flag,
    function,
    in_python,
    optional,
    place,
    python_door,
    whole,
    word,
)
from fresco_trt.run.trace import REQUEST, TEXT, span

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from PIL.Image import Image
    from torch import Tensor

    from fresco_trt.backends.base import Runner
    from fresco_trt.bundle import Bundle
    from fresco_trt.bundle.trust import Trust
    from fresco_trt.files.picture_file import Source
    from fresco_trt.models.family import Encoder
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.captured import CapturedStages
    from fresco_trt.run.request import Conditioning
    from fresco_trt.run.sampler import Step
    from fresco_trt.run.selection import Choice

    OnStep = Callable[[Step], None]
    OnStage = Callable[[int, Image], None]
    Cancel = Callable[[], bool]


class FrescoPipeline:
    """A loaded bundle. Use it as a context manager, or call `close` to free its engines.

    Any thread may call it: as many requests run at once as it has `contexts`. `copy.copy`
    is a pipeline over the engines of the first context, which stay this one's. None is pickled.
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
            features=None if bundle.plan.edit is None else self._decoder.features,
        )
        self._encoder: Encoder | None = None  # of the first edit
        self._scope = ExitStack()
        self._files: FilesInUse | None = None
        self._stages: CapturedStages | None = None
        self._turn, self._others = Turns(), tuple[FrescoPipeline, ...]()
        self._reading = Lock()  # of prompts: tokenizers take one at a time

    @classmethod
    @python_door
    def from_bundle(
        cls,
        path: str | os.PathLike[str],
        *,
        trust_native_code: bool = False,
        verify_key: str | Path | None = None,
        lazy: bool = False,
        contexts: int = 1,
    ) -> FrescoPipeline:
        """Open, validate and load a bundle; needs neither the exporter nor a model hub.

        `contexts` requests run at once over one copy of the weights, where the library can:
        onnxruntime and eager, on a CPU. With `lazy` a stage is loaded when a request first comes to
        it, which then raises what loading raises; all is validated here.

        Engines that are native code (inductor, TensorRT) are loaded if this user built them here.
        Those of others need `trust_native_code`, or a signature by the key in the PEM file
        `verify_key`, which then is required of any bundle; digests vouch for nobody.

        Raises a BundleError for a bundle that cannot be used here (see `fresco_trt.bundle`),
        NativeCodeNotTrusted and BundleNotSigned among them,
        BackendUnavailable where its engine library is not installed, IncompatibleOptions for more
        contexts than it has, and WeightsNotFound for prompt encoders or a decoder that cannot be
        loaded.
        """
        late, count = flag("lazy", lazy), whole("contexts", contexts)
        trust = trust_of(trust_native_code, verify_key)
        return cls.over(opened(place("path", path), trust), trust, lazy=late, contexts=count)

    @classmethod
    def over(
        cls, bundle: Bundle, trust: Trust = NO_TRUST, *, lazy: bool = False, contexts: int = 1
    ) -> FrescoPipeline:
        """Load the engines of a bundle that was opened and found fit; raises as `from_bundle`."""
        from fresco_trt.backends import backend

        library = backend(bundle.manifest.backend.name)
        with ExitStack() as scope:
            with bundle.unchanged():
                loaded = load_contexts(bundle, library, scope, trust, lazy=lazy, contexts=contexts)
                pipeline = cls(bundle, loaded[0], library.describe().device)
                pipeline._files = scope.enter_context(FilesInUse(bundle))
            pipeline._others = tuple(map(pipeline.with_runners, loaded[1:]))
            pipeline._turn = Turns(len(loaded))
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
    def batch(self) -> int:
        """How many pictures the engines take at once."""
        return self.bundle.batch

    @property
    def device(self) -> str:
        """Where the engines run: "cpu" or "cuda"."""
        return str(self._denoiser.device)

    def prompt_tokens(self, prompt: str) -> int:
        """How many tokens of its own a prompt has, at most as many as the engines take.

        Raises PlanError for a string that is not text.
        """
        with self._reading, in_python():
            return self._prompt.tokens(word("prompt", prompt))

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: Source | None = None,
        mask: Source | None = None,
        seed: int | Sequence[int] = 0,
        num_images_per_prompt: int = 1,
        guidance: float | None = None,
        on_step: OnStep | None = None,
        on_stage: OnStage | None = None,
        record_steps: bool = False,
        cancel: Cancel | None = None,
    ) -> Result:
        """Draw a picture or clip, or with a list of prompts or `num_images_per_prompt` several.

        `image` is the source of an edit, for models that edit and only for these: a picture of PIL,
        the path of one, or its file in binary mode. It is brought to the built size. `mask` is
        white where the picture may change, for engines that refine only what an edit touches;
        without one that is found. `seed` is from 0 to `MAX_SEED`: the first picture's, and each
        picture after it has the next; or a list of one for each picture, or of one for each prompt.
        `guidance` (None: the model's default) only for models that take it. `on_step` is called
        after each step; `on_stage(stage, picture)` after each stage (from 1) but the last, with the
        stage's clean estimate decoded at its own size; of a mixed stage, at its fine grid's, with
        what is still coarse repeated over its place. `cancel()` is asked after each step; if it is
        true the request ends there, and its memory is free.

        Several pictures are drawn `batch` at a time, with engines that were built so, else one
        after another, as the result's `runs` say. Each is the picture of a call of its own with its
        prompt and seed. Steps count on over all runs: `(step.step + 1) / step.steps_total` is the
        progress of the call. A preview is of picture number `picture.info["picture"]`, from 0.

        On a GPU whose engines are replayed as CUDA graphs, each stage is one launch from the second
        request on, the result's `steps` are empty, and `cancel` is asked after each stage.
        `on_step` or `record_steps` draws step by step there too: the same picture, with the steps'
        times.

        Raises PlanError for a seed or guidance out of range and another number of seeds,
        PictureInvalid for a source or mask that cannot be read, PromptTooLong for a prompt that
        some stage takes less of, before anything is drawn, BundleChanged if a file of the bundle
        was written to since it was loaded, IncompatibleOptions for a source, mask or guidance that
        is not taken, RunError leaves from an engine, Cancelled if `cancel` says so; warns of what
        the encoders cannot read (PromptWarning), of what is changed of the source (SourceWarning)
        and of edits that touch nothing or nearly all (EditWarning).
        """
        asked = Asked(
            prompt=prompt,
            seed=seed,
            num_images_per_prompt=num_images_per_prompt,
            guidance=guidance,
            image=image,
            mask=mask,
            cancel=cancel,
        )
        request = GenerateRequest.of(self._facts, self.plan, asked)
        for name, told in (("on_step", on_step), ("on_stage", on_stage)):
            optional(function, name, told)
        by_steps = flag("record_steps", record_steps) or on_step is not None
        with self._turn, in_python(), span(REQUEST):
            check_cancel(cancel)  # it may have waited for its turn
            self._check_files()
            clock = Clock()
            with span(TEXT):
                pictures = self._pictures(request, on_stage)
            text = clock.lap()
            parts = [pictures[i : i + self.batch] for i in range(0, len(pictures), self.batch)]
            drawn = [
                self._drawn(part, by_steps, counting(on_step, number, len(parts)), number)
                for number, part in enumerate(parts)
            ]
            clock.lap()
            self._check_files()
            return result_of(request.seeds, self.plan.nfe, drawn, text, clock.total())

    def prepare(self, asked: Asked, *, on_stage: OnStage | None = None) -> list[Picture]:
        """What the arguments of a call ask for, read and encoded, for `draw`; raises and warns as
        the call does before it draws.
        """
        request = GenerateRequest.of(self._facts, self.plan, asked)
        with self._turn, in_python(), span(TEXT):
            check_cancel(request.cancel)
            return self._pictures(request, on_stage)

    def draw(self, pictures: Sequence[Picture]) -> Drawn:
        """Draw up to `batch` pictures in one run, of one caller or of several.

        One whose `cancel` says so is dropped, and changes nothing of the others. Raises Cancelled
        once none is wanted, BundleChanged as a call does, RunError leaves from an engine, and
        ValueError for more than `batch`.
        """
        if not 1 <= len(pictures) <= self.batch:
            raise ValueError(f"{len(pictures)} pictures; expected from 1 to {self.batch}")
        with self._turn, in_python(), span(REQUEST):
            self._check_files()
            drawn = self._drawn(pictures, False, None, 0)
            self._check_files()
            return drawn

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
        other._turn, other._others = self._turn.first(), ()
        return other

    def close(self) -> None:
        """Free the engines, after the requests that are being drawn; no other can be afterwards."""
        with self._turn.all():
            for each in (self, *self._others):
                if each._stages is not None:
                    each._stages.forget()  # before the engines that its graphs run
                each._stages = None
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

    def _check_files(self) -> None:
        """Raise BundleChanged if a file was written to that the engines may still read."""
        if self._files is not None:
            self._files.check()

    def _captured(self) -> CapturedStages | None:
        """What draws with one launch a stage; None where nothing does, and within another request,
        whose stages it would overwrite.
        """
        from fresco_trt.run.captured import CapturedStages

        if self._stages is None:
            self._stages = CapturedStages.of(self._denoiser)
        return None if self._stages is None or self._stages.is_drawing else self._stages

    def _pictures(self, request: GenerateRequest, on_stage: OnStage | None) -> list[Picture]:
        """What a request wants drawn; a prompt is encoded once, however many pictures it has."""
        with self._reading:
            each = dict.fromkeys(request.prompts)
            encoded = {prompt: self._conditioning(prompt, request) for prompt in each}
        return [
            Picture(
                conditioning=encoded[prompt],
                seed=seed,
                on_stage=None if on_stage is None else partial(tell_numbered, on_stage, number),
                cancel=request.cancel,
                source=request.source,
            )
            for number, (prompt, seed) in enumerate(
                zip(request.prompts, request.seeds, strict=True)
            )
        ]

    def _drawn(
        self, pictures: Sequence[Picture], by_steps: bool, on_step: OnStep | None, number: int
    ) -> Drawn:
        """Pictures of one run, in the context that is this thread's; runs count from 0."""
        context = (self, *self._others)[self._turn.index]
        run = Run(
            denoiser=context._denoiser,
            decoder=self._decoder,
            pictures=pictures,
            batch=self.batch,
            number=number + 1,
            on_step=on_step,
        )
        return run.drawn(None if by_steps else context._captured())

    def _conditioning(self, prompt: str, request: GenerateRequest) -> Conditioning:
        import torch

        from fresco_trt.models.registry import family_of
        from fresco_trt.run.request import Conditioning
        from fresco_trt.run.text import check_text

        own = self._prompt.tokens(prompt) if self.plan.cuts_text else None
        check_text(self.plan, own, self.bundle.manifest.text_tokens)
        inputs, negative = self._prompt(prompt, request.source), None
        scale = request.guidance
        if scale is not None and self._facts.guidance:
            inputs["guidance"] = torch.tensor([scale], dtype=torch.float32)
        elif scale is not None and scale > 1.0:  # as diffusers: at 1 and below there is none
            negative = self._prompt(NO_PROMPT, request.source)
        references: tuple[Tensor, ...] = ()
        if request.source is not None:
            if self._encoder is None:
                components = family_of(self._facts).components
                with self.bundle.unchanged():
                    self._encoder = components.encoder(self.bundle.pipeline_folder)
            references = (source_latents(self._encoder, request.source),)
        mask = None if request.mask is None else mask_latents(request.mask, self._facts.vae_scale)
        return Conditioning(
            inputs=inputs,
            negative=negative,
            true_cfg_scale=1.0 if negative is None or scale is None else scale,
            prompt_tokens=own,
            references=references,
            mask=mask,
        )
