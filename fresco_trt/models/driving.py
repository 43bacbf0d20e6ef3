"""How diffusers' own pipelines are driven from outside, as the rest of the package asks for it.

Part of the seam (:mod:`fresco_trt.models.family`); shapes are spelt as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import StagePlan

Branches: TypeAlias = "tuple[dict[str, Tensor], dict[str, Tensor] | None]"
"""Engine inputs by name, with the prompt and, where true guidance is asked for, without it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SourcePictures:
    """The pictures to edit of one call, as its pipeline prepares them.

    ``pixels`` [b,3,H,W] from -1 to 1 or, if they ``are_latents``, normalised latents [b,C,h,w] that
    the caller encoded; ``seen`` is what the prompt encoder is shown, None for one that sees none.
    """

    pixels: Tensor
    are_latents: bool = False
    seen: Any = None


class DiffusersDriver(Protocol):
    """How one of diffusers' pipeline classes is recognised and driven.

    ``pipeline`` and ``transformer`` are names of diffusers' classes, ``scheduler`` that of the
    scheduler whose sigmas the plans have; ``references`` is how many source pictures a picture is
    drawn from; ``base`` the model that a transformer of other dimensions is described after, None
    where models are all listed. ``honoured`` are the arguments of a call that a stage plan can
    honour, ``refused`` why it cannot honour others, by name; ``attention_kwargs`` is the one that
    holds what attention is called with. ``calls_blocks`` says that the graphs call the
    transformer's blocks, as its forward does; ``uncalled`` are paths of parts that they do the work
    of. ``callback_tensors`` are the engine inputs that a callback sees beside the latents, by
    diffusers' names; ``packs`` says that the latents it sees are tokens; ``per_prompt`` is the
    argument that says how many are drawn of each prompt.

    ``values`` are the arguments of a call by name, ``width`` and ``height`` those of :meth:`size`;
    ``source`` is what :meth:`source` gave.
    """

    @property
    def pipeline(self) -> str: ...
    @property
    def transformer(self) -> str: ...
    @property
    def scheduler(self) -> str: ...
    @property
    def references(self) -> int: ...
    @property
    def base(self) -> str | None: ...
    @property
    def honoured(self) -> frozenset[str]: ...
    @property
    def refused(self) -> Mapping[str, str]: ...
    @property
    def attention_kwargs(self) -> str: ...
    @property
    def calls_blocks(self) -> bool: ...
    @property
    def uncalled(self) -> tuple[str, ...]: ...
    @property
    def callback_tensors(self) -> Mapping[str, str]: ...
    @property
    def packs(self) -> bool: ...
    @property
    def per_prompt(self) -> str: ...

    def scheduled(self, facts: ModelFacts, settings: Mapping[str, Any]) -> ModelFacts:
        """The facts with the time shift that a scheduler of these ``settings`` gives, as they are
        stored; left out are those that are the class's own default. Raises IncompatibleOptions for
        a setting that no plan has, and for one that is not known.
        """
        ...

    def vae_scale(self, pipe: Any) -> int:
        """Pixels along a side of a latent pixel."""
        ...

    def size(self, pipe: Any, values: Mapping[str, Any]) -> tuple[float, float]:
        """Width and height of the picture in pixels, as the pipeline's own call makes them of what
        the caller gave, None for what was left out. Raises InvalidArgument.
        """
        ...

    def sized(self, width: int, height: int, frames: int = 1) -> str:
        """How a caller asks for that size, in Python."""
        ...

    def check(self, pipe: Any, values: Mapping[str, Any]) -> None:
        """Raise ValueError where the pipeline's own call would, before it draws."""
        ...

    def source(self, pipe: Any, values: Mapping[str, Any]) -> SourcePictures | None:
        """The source pictures of a call; None of a pipeline that draws from text alone. Raises
        IncompatibleOptions for none, and for those that the pipeline would not encode on the
        picture's own grid; InvalidArgument for what is no picture.
        """
        ...

    def encoded(
        self,
        pipe: Any,
        values: Mapping[str, Any],
        source: SourcePictures | None,
        text_tokens: int | None,
    ) -> tuple[Branches, torch.dtype]:
        """Constant engine inputs of all pictures, float32, by the pipeline's own encoders, and the
        dtype that the pipeline would draw in. The text has ``text_tokens``; None, of a model whose
        padding is masked: as many as it needs. Raises IncompatibleOptions for a text that needs
        more.
        """
        ...

    def prompt_tokens(self, pipe: Any, values: Mapping[str, Any], text_tokens: int) -> int | None:
        """How many of the text's tokens are the longest prompt's own, those of negative prompts
        too; None where that is not known, as of embeddings.
        """
        ...

    def start(
        self, pipe: Any, facts: ModelFacts, plan: StagePlan, given: Mapping[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The noise that the pipeline itself would start from: latents of the full grid, float32 on
        the CPU; and the source pictures' latents, float32, one tensor for each reference.
        ``given`` are the call's ``generator``, ``latents`` and ``source``, the ``dtype`` it draws
        in and how many ``pictures``. Raises IncompatibleOptions for latents of another shape.
        """
        ...

    def adapters_scaled(self, pipe: Any, scale: float) -> AbstractContextManager[None]:
        """Within it the transformer's LoRA layers, if it has any, count ``scale`` times."""
        ...

    def features(self, pipe: Any, latents: Tensor) -> tuple[Tensor, ...]:
        """As :meth:`fresco_trt.models.around.Decoder.features`, by the pipeline's own decoder."""
        ...

    def shown(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens [B,N,C] of a whole grid as the pipeline itself has latents."""
        ...

    def packed(self, latents: Tensor) -> Tensor:
        """Inverse of :meth:`shown`."""
        ...

    def pixels(self, pipe: Any, plan: StagePlan, tokens: Tensor) -> Tensor:
        """The pictures [B,3,H,W], or clips [B,3,F,H,W], of the finished tokens, about -1 to 1, by
        the pipeline's own decoder.
        """
        ...

    def finished(self, pipe: Any, pixels: Tensor, output_type: str) -> Any:
        """What :meth:`pixels` gave in the form that was asked for, by the pipeline's own code."""
        ...

    def wrapped(self, pictures: Any) -> Any:
        """The pictures in the class that the pipeline returns."""
        ...
