"""Qwen-Image as a :class:`~fresco_trt.models.family.ModelFamily`: where each of its parts is.

Architecture: Qwen-Image (arXiv 2508.02324), as in diffusers' ``QwenImageTransformer2DModel``.
Importing this file imports no torch; what needs it is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.models import pipeline_folder
from fresco_trt.models.family import ModelFamily, guided
from fresco_trt.models.qwen import layers, loading, signatures
from fresco_trt.models.qwen.config import COMPONENTS, REPOSITORIES, transformer_config
from fresco_trt.models.qwen.diffusers import QwenDriver, QwenEditDriver, QwenEditPlusDriver
from fresco_trt.models.qwen.facts import QWEN_FACTS
from fresco_trt.models.qwen.tokens import QwenPatchifier

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.models.cutting import StageCut
    from fresco_trt.models.qwen.components import QwenDecoder, QwenEncoder
    from fresco_trt.models.qwen.prompts import QwenPrompt
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.signature import GraphSignature


class QwenGraphs:
    """A :class:`~fresco_trt.models.family.FamilyGraphs`."""

    signature = staticmethod(signatures.stage_signature)

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

    config = staticmethod(transformer_config)
    load = staticmethod(loading.load_transformer)
    parameters = staticmethod(layers.graph_parameters)
    with_blocks = staticmethod(layers.with_blocks)

    def stored(self, folder: Path, device: str = "cpu") -> Module:
        """As :func:`~fresco_trt.models.qwen.loading.transformer_from_folder`, on ``device``."""
        from fresco_trt.models.qwen.loading import transformer_from_folder

        return transformer_from_folder(folder).to(device)


class QwenComponents:
    """A :class:`~fresco_trt.models.family.FamilyComponents`."""

    names = COMPONENTS
    find_vae = staticmethod(pipeline_folder.find_vae)

    def find(self, weights: str | None, model: str) -> Path:
        """As :func:`~fresco_trt.models.pipeline_folder.find_pipeline`."""
        return pipeline_folder.find_pipeline(weights, model, COMPONENTS, REPOSITORIES.get(model))

    def check(self, folder: Path, facts: ModelFacts) -> None:
        """As :func:`~fresco_trt.models.qwen.components.check_folder`."""
        from fresco_trt.models.qwen.components import check_folder

        check_folder(folder, facts)

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
