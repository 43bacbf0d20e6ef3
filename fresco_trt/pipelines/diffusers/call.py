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
    """The arguments that are honoured, the pipeline's defaults among them: a call without
    ``max_sequence_length`` asks for that of its signature, one without ``width`` for the pipeline's
    own size. ``given`` are the names that the caller wrote.
    """

    prompt: str | Sequence[str] | None
    prompt_2: str | Sequence[str] | None
    prompt_embeds: Tensor | None
    pooled_prompt_embeds: Tensor | None
    height: int
    width: int
    steps: int
    length: int
    guidance: float
    given: frozenset[str]
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None
    output_type: str
    return_dict: bool

    @property
    def text_tokens(self) -> int:
        """The length of the text: that of embeddings, where they are given."""
        if self.prompt_embeds is not None:
            return int(self.prompt_embeds.shape[1])
        return self.length

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

    Raises TypeError for an argument it does not have, and IncompatibleOptions for one that the
    stage plan cannot honour, unless it is the default, and for more than one picture.
    """
    signature = inspect.signature(function)
    bound = signature.bind(pipe, *args, **given)
    defaults = {name: each.default for name, each in signature.parameters.items()}
    for name, value in tuple(bound.arguments.items())[1:]:
        if name not in driver.honoured and not _is_neutral(value, defaults[name]):
            raise _refused(name, driver.refused)
        if value is None:  # as if it were left out: diffusers' sizes are
            del bound.arguments[name]
    written = frozenset(bound.arguments)
    bound.apply_defaults()
    call = _call(pipe, bound.arguments, written)
    _check(call)
    return call


def _call(pipe: Any, values: Mapping[str, Any], written: frozenset[str]) -> Call:
    side = pipe.default_sample_size * pipe.vae_scale_factor
    return Call(
        prompt=values["prompt"],
        prompt_2=values["prompt_2"],
        prompt_embeds=values["prompt_embeds"],
        pooled_prompt_embeds=values["pooled_prompt_embeds"],
        height=values["height"] or side,
        width=values["width"] or side,
        steps=values["num_inference_steps"],
        length=values["max_sequence_length"],
        guidance=values["guidance_scale"],
        given=written,
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
