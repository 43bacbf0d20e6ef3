"""What one call of a pipeline asks for: its pictures in diffusers' order, a seed for each.

In front of the pipelines. Everything that can be refused without drawing is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fresco_trt.errors import InvalidArgument, PlanError
from fresco_trt.pipelines.checks import MAX_SEED, check_seed, guidance_of
from fresco_trt.plan.arguments import function, in_python, optional, whole, word

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.files.picture_file import Source
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

    Cancel = Callable[[], bool]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GenerateRequest:
    """The pictures of one call: one of ``prompts`` and one of ``seeds`` for each.

    All pictures of a prompt stand together, as diffusers orders them. ``guidance`` is the scale
    that the engines see, None for a model without one; ``source`` the picture to edit, RGB of the
    built size, the same for all, ``mask`` where it may change; ``cancel`` is asked while they are
    drawn. Raises ValueError for another number of seeds than of prompts, and for none.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    guidance: float | None = None
    source: Image | None = None
    mask: Image | None = None
    cancel: Cancel | None = None

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.seeds):
            given = f"{len(self.prompts)} prompts and {len(self.seeds)} seeds"
            raise ValueError(f"{given}; expected one of each for every picture")

    @classmethod
    def of(cls, facts: ModelFacts, plan: StagePlan, given: Asked) -> Self:
        """What a call's arguments ask of a model by a built plan; raises as
        :meth:`fresco_trt.FrescoPipeline.__call__`.
        """
        from fresco_trt.pipelines.edit import check_source, source_picture
        from fresco_trt.pipelines.selective import check_mask, mask_picture

        each = prompts_of(given.prompt)
        count = _count_of(given.num_images_per_prompt)
        seeds = seeds_of(given.seed, prompts=len(each), count=count)
        scale = guidance_of(facts, given.guidance)
        with in_python():
            check_source(facts, given.image)
            check_mask(plan, given.mask)
            source = None if given.image is None else source_picture(given.image, plan.size)
            mask = None if given.mask is None else mask_picture(given.mask, plan.size)
        return cls(
            prompts=tuple(prompt for prompt in each for _ in range(count)),
            seeds=seeds,
            guidance=scale,
            source=source,
            mask=mask,
            cancel=optional(function, "cancel", given.cancel),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Asked:
    """The arguments of a call as they were given, by their names."""

    prompt: Any
    seed: Any = 0
    num_images_per_prompt: Any = 1
    guidance: float | None = None
    image: Source | None = None
    mask: Source | None = None
    cancel: Cancel | None = None


def prompts_of(prompt: str | Sequence[str]) -> tuple[str, ...]:
    """One prompt, or each of a list. Raises InvalidArgument for an empty list and another type."""
    if isinstance(prompt, str | bytes) or not isinstance(prompt, Sequence):
        return (word("prompt", prompt),)
    if not prompt:
        raise InvalidArgument(
            f"prompt={prompt!r}", expected="a text, or one or more in a list", fix="pass a prompt"
        )
    return tuple(word(f"prompt[{index}]", each) for index, each in enumerate(prompt))


def seeds_of(seed: Any, *, prompts: int, count: int) -> tuple[int, ...]:
    """A seed for each of ``count`` pictures of each of so many prompts.

    One number is the first picture's, and each picture after it has the next. A list has a seed for
    each picture, or one for each prompt, from which its pictures count on. Raises PlanError for a
    list of another length and a seed out of range, InvalidArgument for what is no number.
    """
    pictures = prompts * count
    if isinstance(seed, str | bytes) or not isinstance(seed, Sequence):
        return _counted(check_seed(seed), pictures)
    each = [check_seed(one) for one in seed]
    if len(each) == pictures:
        return tuple(each)
    if len(each) == prompts:
        return tuple(one for first in each for one in _counted(first, count))
    either = "" if count == 1 else f", or {prompts}, one for each prompt"
    raise PlanError(
        f"{_number(len(each), 'seed')} for {_number(pictures, 'picture')}",
        expected=f"{pictures}, one for each picture{either}",
        fix="pass as many, or one number: each picture after the first has the next",
    )


def _counted(first: int, count: int) -> tuple[int, ...]:
    if first + count - 1 > MAX_SEED:
        raise PlanError(
            f"seed {first} for {count} pictures, each with the next",
            expected=f"a whole number from 0 to {MAX_SEED - count + 1}",
            fix="pass such a seed",
        )
    return tuple(range(first, first + count))


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _count_of(given: Any) -> int:
    count = whole("num_images_per_prompt", given)
    if count < 1:
        raise PlanError(
            f"num_images_per_prompt={count}" if count > -(10**30) else "num_images_per_prompt",
            expected="1 or more",
            fix="pass how many pictures of each prompt to draw",
        )
    return count
