"""One call of an enabled pipeline: diffusers' own arguments, each honoured or refused by its name.

Between the caller and the drawing. The arguments are bound to the signature of the pipeline's own
class, so that an argument of a newer diffusers is known to be there, and is refused if it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.models.family import DiffusersDriver

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """The arguments that are honoured, as given; None for sizes, steps, lengths and guidance that
    were left to their defaults, which ``steps_default`` and ``length_default`` are.
    """

    prompt: str | Sequence[str] | None
    prompt_2: str | Sequence[str] | None
    prompt_embeds: Tensor | None
    pooled_prompt_embeds: Tensor | None
    height: int | None
    width: int | None
    steps: int | None
    steps_default: int
    length: int | None
    length_default: int
    guidance: float | None
    guidance_default: float
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None
    output_type: str
    return_dict: bool


def read_call(
    function: Callable[..., Any],
    driver: DiffusersDriver,
    pipe: Any,
    args: Sequence[Any],
    given: Mapping[str, Any],
) -> Call:
    """The arguments of a call of ``function``, a pipeline class's own ``__call__``.

    Raises TypeError for an argument it does not have, and IncompatibleOptions for one that the
    stage plan cannot honour, unless it is the default, and for more than one picture.
    """
    signature = inspect.signature(function)
    bound = signature.bind(pipe, *args, **given)
    explicit = dict(bound.arguments)
    defaults = {name: each.default for name, each in signature.parameters.items()}
    for name in list(explicit)[1:]:
        if name not in driver.honoured and not _is_neutral(explicit[name], defaults[name]):
            raise _refused(name, driver.refused)
    bound.apply_defaults()
    call = _call(bound.arguments, explicit, defaults)
    _check(call)
    return call


def _call(
    values: Mapping[str, Any], explicit: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Call:
    return Call(
        prompt=values["prompt"],
        prompt_2=values["prompt_2"],
        prompt_embeds=values["prompt_embeds"],
        pooled_prompt_embeds=values["pooled_prompt_embeds"],
        height=values["height"] or None,
        width=values["width"] or None,
        steps=explicit.get("num_inference_steps"),
        steps_default=defaults["num_inference_steps"],
        length=explicit.get("max_sequence_length"),
        length_default=defaults["max_sequence_length"],
        guidance=explicit.get("guidance_scale"),
        guidance_default=defaults["guidance_scale"],
        generator=values["generator"],
        latents=values["latents"],
        output_type=values["output_type"],
        return_dict=values["return_dict"],
    )


def _check(call: Call) -> None:
    """One picture, in a form that is known."""
    prompts = [each for each in (call.prompt, call.prompt_2) if isinstance(each, (list, tuple))]
    counts = [len(each) for each in prompts]
    embedded = (call.prompt_embeds, call.pooled_prompt_embeds, call.latents)
    counts += [len(each) for each in embedded if each is not None]
    if isinstance(call.generator, list):
        counts.append(len(call.generator))
    if any(count != 1 for count in counts):
        raise IncompatibleOptions(
            f"a call for {max(counts, key=lambda count: abs(count - 1))} pictures",
            expected="one picture a call: each chooses tokens of its own",
            fix="call the pipeline once for each prompt",
        )
    if call.output_type not in OUTPUT_TYPES:
        raise IncompatibleOptions(
            f"output_type={call.output_type!r}",
            expected=f"one of {', '.join(OUTPUT_TYPES)}",
            fix="pass one of these",
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
    why = reasons.get(name) or reasons.get("negative_prompt" if "negative" in name else "")
    return IncompatibleOptions(
        f"{name} in a call of an enabled pipeline",
        expected=why or "an argument that the stage plan can honour",
        fix=f"leave {name} out, or call fresco_trt.disable(pipe) first",
    )
