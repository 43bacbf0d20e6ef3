"""The seam between the package and a model family: what is peculiar to one, and nothing else.

Beside the data path, read on both sides of the double arrow. Everything outside ``models/`` is
written against these types and finds a family through ``facts.family``
(:mod:`fresco_trt.models.registry`). A new family is one folder that makes one :class:`ModelFamily`.

Shapes: B pictures or clips; T text tokens; N target tokens of a grid and R reference tokens behind
them; A axes of a position; C channels of a token. Latents are [B,C,H,W], or [B,C,F,H,W] where a
model has latent frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from fresco_trt.models.around import Decoder as Decoder
from fresco_trt.models.around import Encoder as Encoder
from fresco_trt.models.around import FamilyComponents as FamilyComponents
from fresco_trt.models.around import PromptEncoder as PromptEncoder
from fresco_trt.models.around import PromptWarning as PromptWarning
from fresco_trt.models.driving import DiffusersDriver as DiffusersDriver
from fresco_trt.plan.facts import ModelFacts

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.plan.caching import Action, CacheSite
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.memory import Parameters
    from fresco_trt.plan.recipes import Recipe
    from fresco_trt.plan.signature import GraphSignature
    from fresco_trt.plan.stages import StagePlan

Layer: TypeAlias = "Callable[..., Sequence[Tensor]]"


# --- tokens -----------------------------------------------------------------------------------


class Patchifier(Protocol):
    """How one model turns latents into tokens, and where those tokens are."""

    def pack(self, latents: Tensor) -> Tensor:
        """Tokens [B,N,C] from latents, in raster order, frames outermost; may be a view."""
        ...

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Latents of ``grid`` from tokens [B,N,C]; may be a view."""
        ...

    def positions(self, grid: Grid, image: int = 0) -> Tensor:
        """Positions of a grid's tokens, float32 [N,A] on the CPU, in raster order.

        The last two axes are row and column, one apart for neighbours. ``image`` 0 is what is
        drawn, 1 and up are references.
        """
        ...

    def tables(self, positions: Tensor) -> Mapping[str, Tensor]:
        """Named engine inputs that depend on positions [N,A] alone (``rope_cos``, ``rope_sin``).

        Each has one row a token, behind the rows of the text; rows do not depend on one another.
        """
        ...


# --- engines ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """Layers that one compiled piece serves: equal but for their weights, which they share with the
    graph. Each takes the inputs of ``signature`` in order and returns a tuple of its outputs;
    ``kind`` is unique within a cut, ``name`` says the shape too.
    """

    kind: str
    name: str
    signature: GraphSignature
    layers: tuple[Module, ...]


class Cut(Protocol):
    """A stage graph as parts that are compiled one by one, and how they make it up again."""

    @property
    def parts(self) -> tuple[Part, ...]: ...

    def run(
        self, layers: Mapping[str, Sequence[Layer]], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The graph's outputs from its inputs, by name; ``layers`` are those of every part, as they
        are or compiled, by the part's kind.
        """
        ...


class FamilyGraphs(Protocol):
    """The graphs that a family's stages are made of."""

    def signature(
        self,
        facts: ModelFacts,
        plan: StagePlan,
        stage: int,
        action: Action = "full",
        *,
        text_tokens: int,
        feature: bool | None = None,
        batch: int = 1,
    ) -> GraphSignature:
        """Signature of a graph of a plan's stage, counted from 0; all float32.

        ``latents`` are [B,N+R,C] with the references of ``facts`` behind the target, ``velocity``
        [B,N,C], ``timestep`` [B] is sigma. A prompt is encoded to ``text_tokens``, of which the
        stage takes ``plan.text_tokens(text_tokens)[stage]``. The full graph gives what is cached
        (``FEATURES``) if ``feature`` says so; None: where a later step of the stage starts from it.
        Raises InvalidPlan for a plan that the family has no graph for.
        """
        ...

    def module(self, transformer: Module, signature: GraphSignature) -> Module:
        """The module that a signature of this family was written for, over the same weights: called
        with the inputs in order, it returns the outputs in order.
        """
        ...

    def cut(self, graph: Module, signature: GraphSignature, *, fuse: bool = False) -> Cut:
        """A graph of :meth:`module` as parts, for engines compiled block by block. With ``fuse``
        layers of a part that share an input may be one product. Their weights then are one tensor,
        and the graph's own are parts of it: moved there unless they are, without a second copy.
        Sparse attention then is a kernel, which does what it should only where it was compiled.
        """
        ...

    def attention(self, transformer: Module) -> Mapping[str, Callable[[Module], None]]:
        """Every attention of the transformer, by path: called with a module that multiplies as
        torch's ``scaled_dot_product_attention`` does, it has the attention use that one instead.
        """
        ...


# --- weights ----------------------------------------------------------------------------------


class FamilyWeights(Protocol):
    """A family's transformer: its configuration, its weights, and how much of both there is."""

    def config(self, facts: ModelFacts) -> dict[str, Any]:
        """The transformer's configuration as it is stored with the weights."""
        ...

    def load(
        self,
        weights: str | Path | None,
        facts: ModelFacts,
        *,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> Module:
        """The transformer in evaluation mode on the CPU, in ``dtype`` (None: float32).

        ``weights`` is a diffusers pipeline folder, a transformer folder, a ``.safetensors`` file,
        None for the packaged weights or the hub, or "random" for seeded values at the real
        dimensions. Raises WeightsNotFound, UnsupportedWeights for a form that is not read, and
        IncompatibleOptions if they are another model's.
        """
        ...

    def stored(self, folder: Path, device: str = "cpu") -> Module:
        """The transformer of a folder as it is stored there; raises as :meth:`load`. On a GPU a cut
        of its graphs finds the weights where it wants them.
        """
        ...

    def parameters(
        self,
        facts: ModelFacts,
        action: Action,
        site: CacheSite,
        *,
        recipe: Recipe | None = None,
        kept: tuple[str, ...] = (),
    ) -> Parameters:
        """Parameters of a stage's graph, known without weights; those of a full one are the
        transformer's. ``recipe`` turns linear layers into codes that no pattern of ``kept`` names.
        """
        ...

    def with_blocks(self, facts: ModelFacts, blocks: tuple[int, ...]) -> ModelFacts:
        """The facts of the same model with only so many blocks of each kind. Raises PlanError."""
        ...


# --- what is around the transformer -----------------------------------------------------------


class FamilyVariants(Protocol):
    """Models of a family in other dimensions than those that it lists."""

    def facts(self, base: ModelFacts, config: Mapping[str, Any]) -> ModelFacts:
        """The facts of ``base`` with what ``config`` changes, by diffusers' names and ``vae_scale``
        for the pixels along a latent pixel; ``base`` itself where it changes nothing. The name is
        that of ``base``, a colon, and each difference as ``name=value``. Raises IncompatibleOptions
        for a name or a value that no such transformer has.
        """
        ...


# --- true guidance ----------------------------------------------------------------------------


def guided(given: Tensor, negative: Tensor, scale: float) -> Tensor:
    """The velocity [B,N,C] that classifier-free guidance makes of those with and without the
    prompt: ``v- + scale * (v - v-)`` (arXiv 2207.12598, eq. 6).
    """
    return negative + scale * (given - negative)


# --- a family ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelFamily:
    """One family: its ``name``, its ``models``, and the five things that are peculiar to it.

    ``patchifier`` is called with facts and the number of text tokens. ``diffusers`` drive those of
    its pipelines that can be enabled; ``variants`` is None for a family whose models are all
    listed. ``guide`` is called as :func:`guided`.
    """

    name: str
    models: tuple[ModelFacts, ...]
    patchifier: Callable[[ModelFacts, int], Patchifier]
    graphs: FamilyGraphs
    weights: FamilyWeights
    components: FamilyComponents
    diffusers: tuple[DiffusersDriver, ...] = ()
    variants: FamilyVariants | None = None
    guide: Callable[[Tensor, Tensor, float], Tensor] = guided
