"""One call of an enabled pipeline: diffusers' own arguments, each honoured or refused by its name.

Between the caller and the drawing. The arguments are bound to the signature of the pipeline's own
class, so that an argument of a newer diffusers is known to be there, and is refused if it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import FrescoError, IncompatibleOptions, InvalidArgument
from fresco_trt.plan.arguments import (
    OF_A_CALL,
    finite,
    function,
    mapping,
    number,
    optional,
    unicode,
    whole,
)
from fresco_trt.plan.sizes import with_frames

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.models.driving import DiffusersDriver, SourcePictures
    from fresco_trt.plan.arguments import Spelling
    from fresco_trt.plan.sizes import Size

LONGEST = 300
"""Characters of a message of diffusers that are shown: it may have a whole tensor in it."""

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """The arguments of a call, the pipeline's defaults among them: one without
    ``max_sequence_length`` asks for that of its signature, one without ``width`` for the pipeline's
    own size. ``given`` are the names that the caller wrote; ``width`` and ``height`` are those of
    the picture, a multiple of ``cell`` pixels each, as diffusers rounds them. ``source`` are the
    pictures to edit, None for a pipeline that draws from text alone.
    """

    driver: DiffusersDriver
    values: Mapping[str, Any]
    given: frozenset[str]
    cell: int
    source: SourcePictures | None = None

    @property
    def width(self) -> int:
        """Of the picture, in pixels."""
        return int(self.values["width"]) // self.cell * self.cell

    @property
    def height(self) -> int:
        """Of the picture, in pixels."""
        return int(self.values["height"]) // self.cell * self.cell

    @property
    def size(self) -> Size:
        """Width and height, and the frames of a clip."""
        return with_frames((self.width, self.height), int(self.values.get("num_frames", 1)))

    @property
    def steps(self) -> int:
        """How many."""
        steps: int = self.values["num_inference_steps"]
        return steps

    @property
    def length(self) -> int:
        """Of a prompt's text, in tokens."""
        length: int = self.values["max_sequence_length"]
        return length

    @property
    def prompt_embeds(self) -> Tensor | None:
        """Text that was encoded by the caller, [B,T,D]."""
        embeds: Tensor | None = self.values["prompt_embeds"]
        return embeds

    @property
    def text_tokens(self) -> int:
        """The length of the text: that of embeddings, where they are given."""
        return self.length if self.prompt_embeds is None else int(self.prompt_embeds.shape[1])

    @property
    def pictures(self) -> int:
        """How many are asked for."""
        prompt = self.values["prompt"]
        if self.prompt_embeds is not None:
            prompts = len(self.prompt_embeds)
        else:
            prompts = len(prompt) if isinstance(prompt, list) else 1
        return prompts * int(self.values[self.driver.per_prompt])

    @property
    def attention_kwargs(self) -> Mapping[str, Any]:
        """What attention is to be called with."""
        return self.values[self.driver.attention_kwargs] or {}

    @property
    def adapter_scale(self) -> float | None:
        """The scale of the LoRA layers, where one is asked for."""
        return self.attention_kwargs.get("scale")

    def spelt(self, name: str, value: object) -> str:
        """An argument as a message names it, which says where the caller left it out."""
        return f"{name}={value}{'' if name in self.given else ' (the default of the pipeline)'}"


def read_call(
    function: Callable[..., Any],
    driver: DiffusersDriver,
    pipe: Any,
    args: Sequence[Any],
    given: Mapping[str, Any],
) -> Call:
    """The arguments of a call of ``function``, a pipeline class's own ``__call__``.

    Raises TypeError for an argument it does not have, InvalidArgument where the pipeline itself has
    a ValueError, and IncompatibleOptions for what the stage plan cannot honour, unless it is the
    default.
    """
    signature = inspect.signature(function)
    _check_names(signature.parameters, driver, given)
    bound = signature.bind(pipe, *args, **given)
    defaults = {name: each.default for name, each in signature.parameters.items()}
    for name, value in tuple(bound.arguments.items())[1:]:
        if name not in driver.honoured and not _is_neutral(value, defaults[name]):
            raise _refused(name, driver.refused)
        if value is None:  # as if it were left out: diffusers' sizes are
            del bound.arguments[name]
    written = frozenset(bound.arguments)
    bound.apply_defaults()
    values = dict(bound.arguments)
    _check(values, driver)
    values["width"], values["height"] = driver.size(pipe, values)
    with _own_errors():
        driver.check(pipe, values)
    cell = 2 * driver.vae_scale(pipe)
    return Call(driver=driver, values=values, given=written, cell=cell)


def with_source(call: Call, pipe: Any) -> Call:
    """The call with the pictures that it edits, if its pipeline does. Raises InvalidArgument and
    IncompatibleOptions.
    """
    with _own_errors():
        source = call.driver.source(pipe, call.values)
    if source is not None and call.pictures % len(source.pixels):
        raise IncompatibleOptions(
            f"{len(source.pixels)} of image for a call of {call.pictures}",
            expected="one source for all pictures, or one for each",
            fix="pass one picture, or as many as there are prompts",
        )
    return replace(call, source=source)


@contextmanager
def _own_errors() -> Iterator[None]:
    """What the pipeline raises as a ValueError, as one of this package."""
    try:
        yield
    except FrescoError:
        raise
    except ValueError as error:
        told = str(error)
        raise InvalidArgument(
            told if len(told) <= LONGEST else f"{told[:LONGEST]}...",
            expected="what a call of the plain pipeline takes",
            fix="pass these arguments as diffusers describes them",
        ) from error


def spellings(driver: DiffusersDriver) -> Mapping[str, Spelling]:
    """How the options of a plan are spelt in a call of a driver's pipeline."""

    def size(name: str, value: str | None) -> str:
        numbers = (value or "").split("x")
        if len(numbers) in (2, 3) and all(each.isdigit() for each in numbers):
            return driver.sized(*map(int, numbers))
        return OF_A_CALL["size"](name, value)

    return {**OF_A_CALL, "size": size}


CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "width": finite,
    "height": finite,
    "num_inference_steps": whole,
    "max_sequence_length": whole,
    "num_frames": whole,
    "num_images_per_prompt": whole,
    "num_videos_per_prompt": whole,
    "guidance_scale": number,
    "true_cfg_scale": finite,
    "max_area": finite,
    "callback_on_step_end": function,
}
"""Of which type an argument has to be, where the pipeline does not look."""


ELSEWHERE: Mapping[str, tuple[str, str]] = {
    "image": (
        "arguments of a pipeline that draws from text alone",
        "leave image out, or enable the pipeline that diffusers has for edits",
    ),
    "mask": (
        "diffusers' own arguments: what an edit touches is found, and is in the result's masks",
        "leave mask out, or build a bundle and draw with FrescoPipeline, whose calls take one",
    ),
}
"""Arguments of pictures that are edited, and where there are such."""


def _check_names(
    known: Mapping[str, Any], driver: DiffusersDriver, given: Mapping[str, Any]
) -> None:
    """Raise IncompatibleOptions for what calls of other pipelines take."""
    for name in given.keys() & ELSEWHERE.keys() - known.keys():
        expected, fix = ELSEWHERE[name]
        raise IncompatibleOptions(
            f"{name} in a call of an enabled {driver.pipeline}", expected=expected, fix=fix
        )


def _check(values: Mapping[str, Any], driver: DiffusersDriver) -> None:
    """What the pipeline would find out late, in other words, or not at all."""
    attention_kwargs = driver.attention_kwargs
    for name, check in {**CHECKS, attention_kwargs: mapping}.items():
        optional(check, name, values.get(name))
    passed = values[attention_kwargs] or {}
    optional(finite, f"{attention_kwargs}['scale']", passed.get("scale"))
    _check_tensors(values)
    if values["output_type"] not in OUTPUT_TYPES:
        raise IncompatibleOptions(
            f"output_type={values['output_type']!r}",
            expected=f"one of {', '.join(OUTPUT_TYPES)}",
            fix="pass one of these",
        )
    if values["max_sequence_length"] < 1:
        raise InvalidArgument(
            f"max_sequence_length={values['max_sequence_length']}",
            expected="1 token or more",
            fix="pass the length that the text is to have",
        )
    for name in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
        given = values.get(name)
        for text in given if isinstance(given, list) else [given]:
            optional(unicode, name, text)
    pictures, prompt = values[driver.per_prompt], values["prompt"]
    if pictures < 1 or prompt == []:
        what = "an empty list of prompts" if prompt == [] else f"{driver.per_prompt}={pictures}"
        raise IncompatibleOptions(
            what, expected="a picture to draw", fix="pass a prompt, and a whole number from 1 up"
        )
    others = sorted(passed.keys() - {"scale"})
    if others:
        raise IncompatibleOptions(
            f"{attention_kwargs} with {', '.join(others)}",
            expected="scale alone: the stage graphs call attention with nothing else",
            fix="leave the others out, or call fresco_trt.disable(pipe) first",
        )


def _check_tensors(values: Mapping[str, Any]) -> None:
    import torch

    tensors = [name for name in values if name.endswith(("_embeds", "_mask"))] + ["latents"]
    kinds = {**dict.fromkeys(tensors, torch.Tensor), "generator": torch.Generator}
    for name, kind in kinds.items():
        given = values[name]
        each = given if name == "generator" and isinstance(given, list) else [given]
        if not all(one is None or isinstance(one, kind) for one in each):
            raise InvalidArgument(
                f"{name} of the type {type(given).__name__}",
                expected=f"a torch.{kind.__name__}",
                fix=f"pass one, or leave {name} out",
            )


def _is_neutral(value: object, default: object) -> bool:
    """Whether an argument changes nothing: its default, spelt out, or an empty one."""
    if value is None or value is default:
        return True
    if isinstance(value, (str, dict)) and not value:
        return True
    plain = (int, float, str, list)
    return isinstance(value, plain) and isinstance(default, plain) and value == default


def _refused(name: str, reasons: Mapping[str, str]) -> IncompatibleOptions:
    why = reasons.get(name) or reasons.get(name.removeprefix("negative_"))
    return IncompatibleOptions(
        f"{name} in a call of an enabled pipeline",
        expected=why or "an argument that the stage plan can honour",
        fix=f"leave {name} out, or call fresco_trt.disable(pipe) first",
    )
