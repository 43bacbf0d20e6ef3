"""Qwen-Image as a :class:`~fresco_trt.models.family.ModelFamily`: where each of its parts is.

Architecture: Qwen-Image (arXiv 2508.02324), as in diffusers' ``QwenImageTransformer2DModel``.
Importing this file imports no torch; what needs it is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.models.family import ModelFamily, guided
from fresco_trt.models.qwen.config import COMPONENTS, transformer_config
from fresco_trt.models.qwen.diffusers import QwenDriver, QwenEditDriver, QwenEditPlusDriver
from fresco_trt.models.qwen.facts import QWEN_FACTS
from fresco_trt.models.qwen.tokens import QwenPatchifier

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.models.cutting import StageCut
    from fresco_trt.models.qwen.components import QwenDecoder, QwenEncoder
    from fresco_trt.models.qwen.prompts import QwenPrompt
    from fresco_trt.plan.caching import Action, CacheSite
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.memory import Parameters
    from fresco_trt.plan.recipes import Recipe
    from fresco_trt.plan.signature import GraphSignature
    from fresco_trt.plan.stages import StagePlan


class QwenGraphs:
    """A :class:`~fresco_trt.models.family.FamilyGraphs`."""

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
        """As :func:`~fresco_trt.models.qwen.signatures.stage_signature`."""
        from fresco_trt.models.qwen.signatures import stage_signature

        return stage_signature(
            facts, plan, stage, action, text_tokens=text_tokens, feature=feature, batch=batch
        )

    def module(self, transformer: Module, signature: GraphSignature) -> Module:
        """As :func:`~fresco_trt.models.qwen.graph.graph_from_signature`."""
        from fresco_trt.models.qwen.graph import graph_from_signature

        return graph_from_signature(transformer, signature)

    def cut(self, graph: Module, signature: GraphSignature, *, fuse: bool = False) -> StageCut:
        """As :func:`~fresco_trt.models.qwen.blocks.cut`; nothing is fused."""
        from fresco_trt.models.qwen.blocks import cut

        return cut(graph, signature)

    def attention(self, transformer: Module) -> Mapping[str, Callable[[Module], None]]:
        """None: no products but torch's own, for nothing is quantised."""
        return {}


class QwenWeights:
    """A :class:`~fresco_trt.models.family.FamilyWeights`."""

    def config(self, facts: ModelFacts) -> dict[str, Any]:
        """As diffusers writes it."""
        return transformer_config(facts)

    def load(
        self,
        weights: str | Path | None,
        facts: ModelFacts,
        *,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> Module:
        """As :func:`~fresco_trt.models.qwen.loading.load_transformer`."""
        from fresco_trt.models.qwen.loading import load_transformer

        return load_transformer(weights, facts, dtype=dtype, seed=seed)

    def stored(self, folder: Path, device: str = "cpu") -> Module:
        """As :func:`~fresco_trt.models.qwen.loading.transformer_from_folder`, on ``device``."""
        from fresco_trt.models.qwen.loading import transformer_from_folder

        return transformer_from_folder(folder).to(device)

    def parameters(
        self,
        facts: ModelFacts,
        action: Action,
        site: CacheSite,
        *,
        recipe: Recipe | None = None,
        kept: tuple[str, ...] = (),
    ) -> Parameters:
        """As :func:`~fresco_trt.models.qwen.layers.graph_parameters`."""
        from fresco_trt.models.qwen.layers import graph_parameters

        return graph_parameters(facts, action, site, recipe=recipe, kept=kept)

    def with_blocks(self, facts: ModelFacts, blocks: tuple[int, ...]) -> ModelFacts:
        """As :func:`~fresco_trt.models.qwen.layers.with_blocks`."""
        from fresco_trt.models.qwen.layers import with_blocks

        return with_blocks(facts, blocks)


class QwenComponents:
    """A :class:`~fresco_trt.models.family.FamilyComponents`."""

    names = COMPONENTS

    def find(self, weights: str | None, model: str) -> Path:
        """As :func:`~fresco_trt.models.qwen.components.find_pipeline`."""
        from fresco_trt.models.qwen.components import find_pipeline

        return find_pipeline(weights, model)

    def check(self, folder: Path, facts: ModelFacts) -> None:
        """As :func:`~fresco_trt.models.qwen.components.check_folder`."""
        from fresco_trt.models.qwen.components import check_folder

        check_folder(folder, facts)

    def find_vae(self, weights: str | None, model: str) -> Path:
        """As :func:`~fresco_trt.models.qwen.components.find_vae`."""
        from fresco_trt.models.qwen.components import find_vae

        return find_vae(weights, model)

    def write_random(self, facts: ModelFacts, folder: Path) -> Path:
        """As :func:`~fresco_trt.models.qwen.random.write_random_pipeline`."""
        from fresco_trt.models.qwen.random import write_random_pipeline

        return write_random_pipeline(facts, folder)

    def prompt_encoder(self, folder: Path, text_tokens: int) -> QwenPrompt:
        """Qwen2.5-VL."""
        from fresco_trt.models.qwen.prompts import QwenPrompt

        return QwenPrompt(folder, text_tokens)

    def decoder(self, folder: Path) -> QwenDecoder:
        """The decoder of an AutoencoderKLQwenImage."""
        from fresco_trt.models.qwen.components import QwenDecoder

        return QwenDecoder(folder)

    def encoder(self, folder: Path) -> QwenEncoder:
        """The encoder of an AutoencoderKLQwenImage."""
        from fresco_trt.models.qwen.components import QwenEncoder

        return QwenEncoder(folder)


def rescaled(given: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Guidance [B,N,C] of which every token is as long as that of the velocity with the prompt, as
    in diffusers' ``QwenImagePipeline``.
    """
    found = guided(given, negative, scale)
    wanted, length = (each.norm(dim=-1, keepdim=True) for each in (given, found))
    made: Tensor = found * (wanted / length)
    return made


QWEN = ModelFamily(
    name="qwen",
    models=QWEN_FACTS,
    patchifier=QwenPatchifier,
    graphs=QwenGraphs(),
    weights=QwenWeights(),
    components=QwenComponents(),
    diffusers=(QwenDriver(), QwenEditDriver(), QwenEditPlusDriver()),
    guide=rescaled,
)
