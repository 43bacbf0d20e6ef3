"""HunyuanVideo as a :class:`~fresco_trt.models.family.ModelFamily`: where each of its parts is.

Architecture: HunyuanVideo (arXiv 2412.03603), as in diffusers' ``HunyuanVideoTransformer3DModel``.
Importing this file imports no torch; what needs it is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.family import ModelFamily
from fresco_trt.models.hunyuan.config import COMPONENTS, transformer_config
from fresco_trt.models.hunyuan.facts import HUNYUAN_FACTS
from fresco_trt.models.hunyuan.tokens import HunyuanPatchifier

if TYPE_CHECKING:
    import torch
    from torch.nn import Module

    from fresco_trt.models.cutting import StageCut
    from fresco_trt.models.family import Decoder, Encoder, PromptEncoder
    from fresco_trt.plan.caching import Action, CacheSite
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.memory import Parameters
    from fresco_trt.plan.recipes import Recipe
    from fresco_trt.plan.signature import GraphSignature
    from fresco_trt.plan.stages import StagePlan


class HunyuanGraphs:
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
        """As :func:`~fresco_trt.models.hunyuan.signatures.stage_signature`."""
        from fresco_trt.models.hunyuan.signatures import stage_signature

        return stage_signature(
            facts, plan, stage, action, text_tokens=text_tokens, feature=feature, batch=batch
        )

    def module(self, transformer: Module, signature: GraphSignature) -> Module:
        """As :func:`~fresco_trt.models.hunyuan.graph.graph_from_signature`."""
        from fresco_trt.models.hunyuan.graph import graph_from_signature

        return graph_from_signature(transformer, signature)

    def cut(self, graph: Module, signature: GraphSignature, *, fuse: bool = False) -> StageCut:
        """As :func:`~fresco_trt.models.hunyuan.blocks.cut`; nothing is fused."""
        from fresco_trt.models.hunyuan.blocks import cut

        return cut(graph, signature)

    def attention(self, transformer: Module) -> Mapping[str, Callable[[Module], None]]:
        """None: no products but torch's own, for nothing is quantised."""
        return {}


class HunyuanWeights:
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
        """As :func:`~fresco_trt.models.hunyuan.loading.load_transformer`."""
        from fresco_trt.models.hunyuan.loading import load_transformer

        return load_transformer(weights, facts, dtype=dtype, seed=seed)

    def stored(self, folder: Path, device: str = "cpu") -> Module:
        """As :func:`~fresco_trt.models.hunyuan.loading.transformer_from_folder`, on ``device``."""
        from fresco_trt.models.hunyuan.loading import transformer_from_folder

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
        """As :func:`~fresco_trt.models.hunyuan.layers.graph_parameters`."""
        from fresco_trt.models.hunyuan.layers import graph_parameters

        return graph_parameters(facts, action, site, recipe=recipe, kept=kept)

    def with_blocks(self, facts: ModelFacts, blocks: tuple[int, ...]) -> ModelFacts:
        """As :func:`~fresco_trt.models.hunyuan.layers.with_blocks`."""
        from fresco_trt.models.hunyuan.layers import with_blocks

        return with_blocks(facts, blocks)


class HunyuanComponents:
    """A :class:`~fresco_trt.models.family.FamilyComponents` that has none yet: every call raises
    IncompatibleOptions.
    """

    names = COMPONENTS

    def find(self, weights: str | None, model: str) -> Path:
        raise _no_parts()

    def check(self, folder: Path, facts: ModelFacts) -> None:
        raise _no_parts()

    def find_vae(self, weights: str | None, model: str) -> Path:
        raise _no_parts()

    def write_random(self, facts: ModelFacts, folder: Path) -> Path:
        raise _no_parts()

    def prompt_encoder(self, folder: Path, text_tokens: int) -> PromptEncoder:
        raise _no_parts()

    def decoder(self, folder: Path) -> Decoder:
        raise _no_parts()

    def encoder(self, folder: Path) -> Encoder:
        raise _no_parts()


def _no_parts() -> IncompatibleOptions:
    return IncompatibleOptions(
        "a bundle of a HunyuanVideo model",
        expected="a plan of it: its prompt encoders and its VAE are not read yet",
        fix="pass --model with another model, or plan with 'fresco-trt plan'",
    )


HUNYUAN = ModelFamily(
    name="hunyuan",
    models=HUNYUAN_FACTS,
    patchifier=HunyuanPatchifier,
    graphs=HunyuanGraphs(),
    weights=HunyuanWeights(),
    components=HunyuanComponents(),
)
