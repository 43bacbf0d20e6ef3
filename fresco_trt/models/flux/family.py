"""FLUX as a :class:`~fresco_trt.models.family.ModelFamily`: where each of its parts is.

Architecture: Black Forest Labs, FLUX.1 (2024), as in diffusers' ``FluxTransformer2DModel``.
Importing this file imports no torch; what needs it is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.models import pipeline_folder
from fresco_trt.models.family import ModelFamily
from fresco_trt.models.flux import layers, loading, signatures
from fresco_trt.models.flux.config import COMPONENTS, REPOSITORIES, transformer_config
from fresco_trt.models.flux.diffusers import FluxDriver, FluxKontextDriver
from fresco_trt.models.flux.facts import FLUX_FACTS
from fresco_trt.models.flux.tokens import FluxPatchifier
from fresco_trt.models.flux.variants import FluxVariants

if TYPE_CHECKING:
    from torch.nn import Module

    from fresco_trt.models.cutting import StageCut
    from fresco_trt.models.flux.components import FluxDecoder, FluxEncoder, FluxPrompt
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.signature import GraphSignature


class FluxGraphs:
    """A :class:`~fresco_trt.models.family.FamilyGraphs`."""

    signature = staticmethod(signatures.stage_signature)

    def module(self, transformer: Module, signature: GraphSignature) -> Module:
        """As :func:`~fresco_trt.models.flux.graph.graph_from_signature`."""
        from fresco_trt.models.flux.graph import graph_from_signature

        return graph_from_signature(transformer, signature)

    def cut(self, graph: Module, signature: GraphSignature, *, fuse: bool = False) -> StageCut:
        """As :func:`~fresco_trt.models.flux.blocks.cut`."""
        from fresco_trt.models.flux.blocks import cut

        return cut(graph, signature, fuse=fuse)

    def attention(self, transformer: Module) -> Mapping[str, Callable[[Module], None]]:
        """One for each block."""
        from fresco_trt.models.flux.attention import attention_paths, put_products

        return {
            path: partial(put_products, transformer.get_submodule(path))
            for path in attention_paths(transformer)
        }


class FluxWeights:
    """A :class:`~fresco_trt.models.family.FamilyWeights`."""

    config = staticmethod(transformer_config)
    load = staticmethod(loading.load_transformer)
    parameters = staticmethod(layers.graph_parameters)
    with_blocks = staticmethod(layers.with_blocks)

    def stored(self, folder: Path, device: str = "cpu") -> Module:
        """As :func:`~fresco_trt.models.flux.loading.transformer_from_folder`.

        For a GPU the weights of layers that are fused are joined on the way: captured graphs hold
        their addresses, so they cannot move once an engine has run. On the CPU, where a file's
        weights stay in the file's own memory until they are changed, they wait for the first cut.
        """
        from fresco_trt.models.flux.fusing import join_weights
        from fresco_trt.models.flux.loading import transformer_from_folder

        transformer = transformer_from_folder(folder)
        if device != "cpu":
            join_weights(transformer, device)
        return transformer.to(device)


class FluxComponents:
    """A :class:`~fresco_trt.models.family.FamilyComponents`."""

    names = COMPONENTS
    find_vae = staticmethod(pipeline_folder.find_vae)

    def find(self, weights: str | None, model: str) -> Path:
        """As :func:`~fresco_trt.models.pipeline_folder.find_pipeline`."""
        return pipeline_folder.find_pipeline(weights, model, COMPONENTS, REPOSITORIES.get(model))

    def check(self, folder: Path, facts: ModelFacts) -> None:
        """As :func:`~fresco_trt.models.flux.folder.check_folder`, and then
        :func:`~fresco_trt.models.flux.parts.check_parts`.
        """
        from fresco_trt.models.flux.folder import check_folder
        from fresco_trt.models.flux.parts import check_parts

        check_folder(folder, facts)
        check_parts(folder)

    def write_random(self, facts: ModelFacts, folder: Path) -> Path:
        """As :func:`~fresco_trt.models.flux.random.write_random_pipeline`."""
        from fresco_trt.models.flux.random import write_random_pipeline

        return write_random_pipeline(facts, folder)

    def prompt_encoder(self, folder: Path, text_tokens: int) -> FluxPrompt:
        """CLIP and T5."""
        from fresco_trt.models.flux.components import FluxPrompt

        return FluxPrompt(folder, text_tokens)

    def decoder(self, folder: Path) -> FluxDecoder:
        """The decoder of an AutoencoderKL."""
        from fresco_trt.models.flux.components import FluxDecoder

        return FluxDecoder(folder)

    def encoder(self, folder: Path) -> FluxEncoder:
        """The encoder of an AutoencoderKL."""
        from fresco_trt.models.flux.components import FluxEncoder

        return FluxEncoder(folder)


FLUX = ModelFamily(
    name="flux",
    models=FLUX_FACTS,
    patchifier=FluxPatchifier,
    graphs=FluxGraphs(),
    weights=FluxWeights(),
    components=FluxComponents(),
    diffusers=(FluxDriver(), FluxKontextDriver()),
    variants=FluxVariants(),
)
