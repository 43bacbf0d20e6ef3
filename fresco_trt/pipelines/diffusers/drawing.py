"""A call of an enabled pipeline, from its arguments to diffusers' own output.

The pipeline's encoders, latents and decoder at both ends, and the sampler in between. What a plain
call leaves on the pipeline, such as ``num_timesteps``, this one does, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.backends.base import BorrowedRunner
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.pipelines.checks import guidance_of
from fresco_trt.pipelines.diffusers.call import Call, read_call, with_source
from fresco_trt.pipelines.diffusers.fit import driver_of, facts_of, is_cached
from fresco_trt.pipelines.selective import edited
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.request import Conditioning
from fresco_trt.run.text import TEXT, check_text

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from fresco_trt.backends.base import Runner
    from fresco_trt.models.driving import DiffusersDriver, SourcePictures
    from fresco_trt.pipelines.diffusers.sources import Source
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.sampler import Step


def draw(
    pipe: Any,
    source: Source,
    function: Callable[..., Any],
    args: Sequence[Any],
    given: Mapping[str, Any],
) -> Any:
    """What ``function``, the pipeline's own call, would return, drawn with the source's plan."""
    facts = facts_of(pipe, source.model, hooks=source.hooks)
    driver = driver_of(pipe)
    call = read_call(function, driver, pipe, args, given)
    plan = source.plan(pipe, facts, call)
    _check_callback(call, plan)
    call = with_source(call, pipe)
    text_tokens, pictures = source.text_tokens(facts, call), call.pictures
    own = None
    if plan.cuts_text and text_tokens is not None:
        own = driver.prompt_tokens(pipe, call.values, text_tokens)
        check_text(plan, own, text_tokens)
    _begin(pipe, call, plan)
    with torch.no_grad():
        (text, negative), dtype = driver.encoded(pipe, call.values, call.source, text_tokens)
        text_tokens = text_tokens or text[TEXT].shape[1]
        _check_branches(pictures, text_tokens, text, negative)
        start = {name: call.values[name] for name in ("generator", "latents")}
        start |= {"source": call.source, "dtype": dtype, "pictures": pictures}
        field, references = driver.start(pipe, facts, plan, start)
        batch = source.batch(plan, pictures)
        loaded = source.runners(pipe, facts, plan, text_tokens, batch)
        with loaded as (runners, basis, device):
            if call.adapter_scale is not None:
                runners = {
                    name: _Adapted(each, driver, pipe, call.adapter_scale)
                    for name, each in runners.items()
                }
            if source.hooks and is_cached(pipe.transformer):
                branches = ("cond",) if negative is None else ("cond", "uncond")
                runners = {name: _InContext(each, pipe, branches) for name, each in runners.items()}
            denoiser = Denoiser.of(
                facts,
                plan,
                runners,
                text_tokens=text_tokens,
                device=device,
                basis=basis,
                features=partial(driver.features, pipe),
            )
            scale = _guidance(facts, call)
            drawing = Drawing(
                pipe=pipe,
                call=call,
                denoiser=denoiser,
                inputs=_on(text, scale, pictures, device),
                negative=None if negative is None else _on(negative, scale, pictures, device),
                references=references,
                prompt_tokens=own,
                dtype=dtype,
            )
            drawn = drawing.drawn(field, batch)
        result = _result(pipe, call, plan, drawn, dtype)
    pipe.maybe_free_model_hooks()
    return result


def _check_callback(call: Call, plan: StagePlan) -> None:
    """Raise IncompatibleOptions for a callback that would be shown pictures of several shapes, or
    latents of a grid that has none.
    """
    if call.values["callback_on_step_end"] is None:
        return
    shown = call.values["callback_on_step_end_tensor_inputs"]
    if any(plan.refined) and "latents" in shown and not call.driver.packs:
        raise _no_latents("sees")
    if plan.edit is not None and call.pictures > 1:
        raise IncompatibleOptions(
            f"callback_on_step_end with {call.pictures} pictures of a selective edit",
            expected="one picture: each refines tokens of its own, and as many as it needs",
            fix="leave the callback out, or call the pipeline once for each picture",
        )


def _no_latents(does: str) -> IncompatibleOptions:
    """What a callback is refused with that sees or returns latents where there are none."""
    return IncompatibleOptions(
        f"callback_on_step_end that {does} the latents of a mixed grid",
        expected="a callback without: coarse and fine tokens are no latents of one size",
        fix="pass callback_on_step_end_tensor_inputs=[], or a preset without a mixed stage",
    )


def _begin(pipe: Any, call: Call, plan: StagePlan) -> None:
    """What diffusers keeps of a call, for its callbacks and for whoever wants to stop it."""
    pipe._guidance_scale = call.values["guidance_scale"]
    setattr(pipe, f"_{call.driver.attention_kwargs}", call.attention_kwargs)
    pipe._current_timestep = None
    pipe._interrupt = False
    pipe._num_timesteps = plan.nfe


def _result(pipe: Any, call: Call, plan: StagePlan, drawn: Drawn, dtype: torch.dtype) -> Any:
    """The pictures as the pipeline returns them; of a selective edit with its masks."""
    tokens, output_type = drawn.tokens.to(dtype), call.values["output_type"]
    if output_type == "latent":
        latents = call.driver.shown(tokens, plan.stages[-1].grid)
        output = latents.to(pipe._execution_device)
    else:
        pixels = call.driver.pixels(pipe, plan, tokens)
        for index in drawn.untouched:
            _show_source(call.source, index, pixels)
        output = call.driver.finished(pipe, pixels, output_type)
    if not call.values["return_dict"]:
        return (output,)
    wrapped = call.driver.wrapped(output)
    if plan.edit is not None:
        wrapped.masks = list(drawn.masks)
    return wrapped


def _show_source(source: SourcePictures | None, index: int, pixels: Tensor) -> None:
    """Put the source itself in the place of a picture [B,3,H,W] that an edit leaves as it is; one
    that came as latents has to be decoded.
    """
    if source is not None and not source.are_latents:
        pixels[index] = source.pixels[index % len(source.pixels)].to(pixels)


def _check_branches(
    pictures: int, text_tokens: int, *branches: Mapping[str, Tensor] | None
) -> None:
    """Raise IncompatibleOptions unless each picture has its text, all of one length."""
    for name, branch in zip(("prompt", "negative_prompt"), branches, strict=True):
        for each in (branch or {}).values():
            if len(each) != pictures or (each.ndim == 3 and each.shape[1] != text_tokens):
                tokens = f" of {each.shape[1]} tokens" if each.ndim == 3 else ""
                raise IncompatibleOptions(
                    f"{len(each)} of {name} or its embeds{tokens} for a call of {pictures}",
                    expected=f"{pictures}, of {text_tokens} tokens: one for each picture",
                    fix=f"pass {name} and prompt for as many pictures, and of the same length",
                )


def _guidance(facts: ModelFacts, call: Call) -> float | None:
    """The scale of a model that takes one; another's pipeline reads none either, and draws the same
    picture whatever it is given. Raises PlanError for one out of range.
    """
    return guidance_of(facts, call.values["guidance_scale"]) if facts.guidance else None


def _on(
    branch: Mapping[str, Tensor], guidance: float | None, pictures: int, device: str
) -> dict[str, Tensor]:
    """A branch's engine inputs on the engines' device, in memory of their own."""
    inputs = {name: value.to(device, copy=True) for name, value in branch.items()}
    if guidance is not None:
        inputs["guidance"] = torch.full([pictures], guidance, dtype=torch.float32, device=device)
    return inputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """The finished tokens [B,N,C] of a call. Of selective edits the masks, and which pictures an
    edit leaves as they are.
    """

    tokens: Tensor
    masks: tuple[Image, ...] = ()
    untouched: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawing:
    """One call on its way through the steps. ``inputs`` and ``negative`` are the engine inputs of
    all its pictures, on the denoiser's device, and belong to the call; ``references`` are their
    sources' latents [B,C,H,W].
    """

    pipe: Any
    call: Call
    denoiser: Denoiser
    inputs: Mapping[str, Tensor]
    negative: Mapping[str, Tensor] | None
    references: tuple[Tensor, ...]
    prompt_tokens: int | None
    dtype: torch.dtype

    def drawn(self, field: Tensor, batch: int) -> Drawn:
        """What becomes of the noise [B,C,H,W], ``batch`` pictures in one run.

        Runs go from step to step together, so that a callback sees every picture at each; what was
        drawn before an interrupt is all there is then, enlarged where it is coarse.
        """
        parts = [slice(first, first + batch) for first in range(0, len(field), batch)]
        runs = [self.denoiser.steps(self._conditioning(part), field[part]) for part in parts]
        steps, is_done = self._led(runs)
        if not steps:
            return Drawn(tokens=self.denoiser.patchifier.pack(field))
        if is_done and self.denoiser.plan.edit is not None:
            return self._edited(steps)
        return Drawn(tokens=torch.cat([self.denoiser.whole(step) for step in steps]))

    def _led(self, runs: Sequence[Iterator[Step]]) -> tuple[list[Step], bool]:
        """The last step of each run, and whether all came to their end."""
        plan, pipe = self.denoiser.plan, self.pipe
        # Of the stages that an edit may take, all have the same.
        sigmas = [sigma for index in plan.paths[0] for sigma in plan.stages[index].sigmas[:-1]]
        timesteps = torch.tensor(sigmas, dtype=torch.float32, device=self.denoiser.device) * 1000
        steps: list[Step] = []
        is_done = True
        with _progress(pipe, plan.nfe) as bar:
            for index, timestep in enumerate(timesteps):
                if pipe.interrupt:
                    is_done = False
                    break
                pipe._current_timestep = timestep
                taken = [next(run, None) for run in runs]
                if not any(taken):
                    break
                steps = [now or steps[number] for number, now in enumerate(taken)]
                if self.call.values["callback_on_step_end"] is not None:
                    self._call_back(index, timestep, steps)
                bar.update()
            else:
                for run in runs:
                    next(run, None)  # what was left to be checked
        pipe._current_timestep = None
        return steps, is_done

    def _edited(self, steps: Sequence[Step]) -> Drawn:
        """What became of each picture of a selective edit."""
        pack, (sources,) = self.denoiser.patchifier.pack, self.references
        found = [
            edited(self.denoiser, step, sources[number : number + 1])
            for number, step in enumerate(steps)
        ]
        tokens = [
            pack(sources[number : number + 1] if each.latents is None else each.latents)
            for number, each in enumerate(found)
        ]
        return Drawn(
            tokens=torch.cat([each.to(self.denoiser.device) for each in tokens]),
            masks=tuple(each.mask for each in found),
            untouched=tuple(n for n, each in enumerate(found) if each.latents is None),
        )

    def _conditioning(self, pictures: slice) -> Conditioning:
        """That of some of the pictures: views, so that a callback's text is read from them."""
        negative = self.negative
        return Conditioning(
            inputs={name: value[pictures] for name, value in self.inputs.items()},
            negative=None
            if negative is None
            else {name: value[pictures] for name, value in negative.items()},
            true_cfg_scale=1.0 if negative is None else self.call.values["true_cfg_scale"],
            references=tuple(each[pictures] for each in self.references),
            prompt_tokens=self.prompt_tokens,
        )

    def _call_back(self, index: int, timestep: Tensor, steps: Sequence[Step]) -> None:
        """Tell the caller's callback of a step, and go on from the tensors that it returns."""
        driver, grid = self.call.driver, self.denoiser.plan.stages[steps[0].stage].grid
        ours = {name: self.inputs[own] for name, own in driver.callback_tensors.items()}
        if driver.packs or steps[0].mixed is None:
            ours["latents"] = driver.shown(torch.cat([step.tokens for step in steps]), grid)
        names = self.call.values["callback_on_step_end_tensor_inputs"]
        shown = {name: ours[name].to(self.dtype) for name in names}
        behind = self._behind().clone()
        function = self.call.values["callback_on_step_end"]
        returned = function(self.pipe, index, timestep, dict(shown))
        if not isinstance(returned, dict):
            raise IncompatibleOptions(
                f"a callback_on_step_end that returned {type(returned).__name__}",
                expected="a dict, of the tensors to go on from by name, or an empty one",
                fix="return the callback's last argument",
            )
        if "latents" in returned and "latents" not in ours:
            raise _no_latents("returns")
        for name in returned.keys() & ours.keys():
            _replace(name, returned[name], ours[name])
        if not torch.equal(self._behind(), behind):
            raise IncompatibleOptions(
                "a text from callback_on_step_end that differs where a stage does not read it",
                expected=f"changes in the first {self.inputs[TEXT].shape[1] - behind.shape[1]} "
                "tokens: text_tokens cut what is behind them",
                fix="leave the others as they are, or enable the pipeline without text_tokens",
            )
        if "latents" in returned:
            parts = driver.packed(ours["latents"]).chunk(len(steps))
            for step, part in zip(steps, parts, strict=True):
                step.tokens.copy_(part)

    def _behind(self) -> Tensor:
        """The part of the text that not every stage takes."""
        text = self.inputs[TEXT]
        return text[:, min(self.denoiser.plan.text_tokens(text.shape[1])) :]


def _replace(name: str, returned: Any, ours: Tensor) -> None:
    if not isinstance(returned, torch.Tensor) or returned.shape != ours.shape:
        shape = getattr(returned, "shape", None)
        what = type(returned).__name__ if shape is None else f"the shape {tuple(shape)}"
        raise IncompatibleOptions(
            f"{name} of {what} from callback_on_step_end",
            expected=f"a tensor of the shape {tuple(ours.shape)}, as it was shown",
            fix="return tensors of the shapes that the callback is called with",
        )
    ours.copy_(returned)


class _Adapted(BorrowedRunner):
    """A runner of the pipeline's transformer with its LoRA layers scaled, as diffusers' forward
    scales them: for each call, so that a callback finds them as they were.
    """

    def __init__(self, runner: Runner, driver: DiffusersDriver, pipe: Any, scale: float) -> None:
        super().__init__(runner)
        self._scaled: Callable[[], AbstractContextManager[None]]
        self._scaled = lambda: driver.adapters_scaled(pipe, scale)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        with self._scaled():
            return super().__call__(inputs)


class _InContext(BorrowedRunner):
    """A runner of a transformer with a cache of diffusers, which keeps something for each branch of
    guidance: called for one after the other, as the sampler does.
    """

    def __init__(self, runner: Runner, pipe: Any, branches: Sequence[str]) -> None:
        super().__init__(runner)
        self._transformer, self._branches = pipe.transformer, cycle(branches)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        with self._transformer.cache_context(next(self._branches)):
            return super().__call__(inputs)


@contextmanager
def _progress(pipe: Any, total: int) -> Iterator[Any]:
    """The pipeline's own bar; its settings, which the bar would leave behind, are taken back."""
    before = hasattr(pipe, "_progress_bar_config")
    try:
        with pipe.progress_bar(total=total) as bar:
            yield bar
    finally:
        if not before:
            del pipe._progress_bar_config
