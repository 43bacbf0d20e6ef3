"""HunyuanVideo as a :class:`~fresco_trt.models.family.ModelFamily`: where each of its parts is.

Architecture: HunyuanVideo (arXiv 2412.03603), as in diffusers' ``HunyuanVideoTransformer3DModel``.
Importing this file imports no torch; what needs it is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.models import pipeline_folder
from fresco_trt.models.family import ModelFamily
from fresco_trt.models.hunyuan import layers, loading, signatures
from fresco_trt.models.hunyuan.config import COMPONENTS, REPOSITORIES, transformer_config
from fresco_trt.models.hunyuan.diffusers import HunyuanDriver
from fresco_trt.models.hunyuan.facts import HUNYUAN_FACTS
from fresco_trt.models.hunyuan.tokens import HunyuanPatchifier

if TYPE_CHECKING:
    from torch.nn import Module

    from fresco_trt.models.cutting import StageCut
    from fresco_trt.models.hunyuan.components import HunyuanDecoder, HunyuanEncoder
    from fresco_trt.models.hunyuan.prompts import HunyuanPrompt
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.signature import GraphSignature


class HunyuanGraphs:
    """A :class:`~fresco_trt.models.family.FamilyGraphs`."""

    signature = staticmethod(signatures.stage_signature)

    def module(self, transformer: Module, signature: GraphSignature) -> Module:
        """As :func:`~fresco_trt.models.hunyuan.graph.graph_from_signature`."""
        from fresco_trt.models.hunyuan.graph import graph_from_signature

        return graph_from_signature(transformer, signature)

    def cut(self, graph: Module, signature: GraphSignature, *, fuse: bool = False) -> StageCut:
        """As :func:`~fresco_trt.models.hunyuan.blocks.cut`; sparse attention alone is fused."""
        from fresco_trt.models.hunyuan.blocks import cut

        return cut(graph, signature, flex=fuse)

    def attention(self, transformer: Module) -> Mapping[str, Callable[[Module], None]]:
        """None: no products but torch's own, for nothing is quantised."""
        return {}


class HunyuanWeights:
    """A :class:`~fresco_trt.models.family.FamilyWeights`."""

    config = staticmethod(transformer_config)
    load = staticmethod(loading.load_transformer)
    parameters = staticmethod(layers.graph_parameters)
    with_blocks = staticmethod(layers.with_blocks)

    def stored(self, folder: Path, device: str = "cpu") -> Module:
        """As :func:`~fresco_trt.models.hunyuan.loading.transformer_from_folder`, on ``device``."""
        from fresco_trt.models.hunyuan.loading import transformer_from_folder

        return transformer_from_folder(folder).to(device)


class HunyuanComponents:
    """A :class:`~fresco_trt.models.family.FamilyComponents`."""

    names = COMPONENTS
    find_vae = staticmethod(pipeline_folder.find_vae)

    def find(self, weights: str | None, model: str) -> Path:
        """As :func:`~fresco_trt.models.pipeline_folder.find_pipeline`."""
        return pipeline_folder.find_pipeline(weights, model, COMPONENTS, REPOSITORIES.get(model))

    def check(self, folder: Path, facts: ModelFacts) -> None:
        """As :func:`~fresco_trt.models.hunyuan.components.check_folder`."""
        from fresco_trt.models.hunyuan.components import check_folder

        check_folder(folder, facts)

    def write_random(self, facts: ModelFacts, folder: Path) -> Path:
        """As :func:`~fresco_trt.models.hunyuan.random.write_random_pipeline`."""
        from fresco_trt.models.hunyuan.random import write_random_pipeline

        return write_random_pipeline(facts, folder)

    def prompt_encoder(self, folder: Path, text_tokens: int) -> HunyuanPrompt:
        """LLaMA and CLIP."""
        from fresco_trt.models.hunyuan.prompts import HunyuanPrompt

        return HunyuanPrompt(folder, text_tokens)

    def decoder(self, folder: Path) -> HunyuanDecoder:
        """The decoder of an AutoencoderKLHunyuanVideo."""
        from fresco_trt.models.hunyuan.components import HunyuanDecoder

        return HunyuanDecoder(folder)

    def encoder(self, folder: Path) -> HunyuanEncoder:
        """The encoder of an AutoencoderKLHunyuanVideo."""
        from fresco_trt.models.hunyuan.components import HunyuanEncoder

        return HunyuanEncoder(folder)


HUNYUAN = ModelFamily(
    name="hunyuan",
    models=HUNYUAN_FACTS,
    patchifier=HunyuanPatchifier,
    graphs=HunyuanGraphs(),
    weights=HunyuanWeights(),
    components=HunyuanComponents(),
    diffusers=(HunyuanDriver(),),
)
