"""diffusers' HunyuanVideoPipeline, driven from outside: its encoders, its noise and its decoder.

Under the part of ``pipelines/`` that enables a pipeline. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.drivers import HONOURED, PipelineDriver, check_latents, is_guided
from fresco_trt.models.hunyuan.config import TRANSFORMER
from fresco_trt.models.hunyuan.signatures import BIAS
from fresco_trt.models.hunyuan.tokens import pack_clip, unpack_clip
from fresco_trt.plan.sizes import frames_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.models.driving import Branches, SourcePictures
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import StagePlan

_ENCODED = (
    "prompt",
    "prompt_2",
    "prompt_embeds",
    "pooled_prompt_embeds",
    "prompt_attention_mask",
)
_BESIDE_EMBEDS = _ENCODED[3:]


class HunyuanDriver(PipelineDriver):
    """A :class:`~fresco_trt.models.driving.DiffusersDriver`, whose latents are [B,C,F,h,w]."""

    pipeline = "HunyuanVideoPipeline"
    transformer = TRANSFORMER
    base = None
    attention_kwargs = "attention_kwargs"
    calls_blocks = False
    uncalled = ("rope", "x_embedder.proj")
    packs = False
    per_prompt = "num_videos_per_prompt"
    honoured = HONOURED | {
        "attention_kwargs",
        "negative_pooled_prompt_embeds",
        "negative_prompt_2",
        "negative_prompt_attention_mask",
        "num_frames",
        "num_videos_per_prompt",
        "pooled_prompt_embeds",
        "prompt_2",
        "prompt_attention_mask",
        "prompt_template",
    }
    refused = MappingProxyType({"sigmas": "nothing: the stage plan decides every noise level"})

    def vae_scale(self, pipe: Any) -> int:
        """As in the protocol."""
        scale: int = pipe.vae_scale_factor_spatial
        return scale

    def size(self, pipe: Any, values: Mapping[str, Any]) -> tuple[float, float]:
        """As in the protocol: the call has defaults of its own."""
        return values["width"], values["height"]

    def sized(self, width: int, height: int, frames: int = 1) -> str:
        """As in the protocol: of a clip."""
        return f"{super().sized(width, height)}, num_frames={frames}"

    def check(self, pipe: Any, values: Mapping[str, Any]) -> None:
        """As in the protocol; and what stands beside embeddings, where the pipeline would fail."""
        super().check(pipe, values)
        for prefix in ("", "negative_")[: 1 + is_guided(values)]:
            if values[f"{prefix}prompt_embeds"] is None:
                continue
            for name in _BESIDE_EMBEDS:
                if values[f"{prefix}{name}"] is None:
                    told = f"`{prefix}{name}` has to be passed with `{prefix}prompt_embeds`"
                    raise ValueError(told)

    def encoded(
        self,
        pipe: Any,
        values: Mapping[str, Any],
        source: SourcePictures | None,
        text_tokens: int | None,
    ) -> tuple[Branches, torch.dtype]:
        """``text`` [B,T,D], ``text_bias`` [B,T] and ``pooled`` [B,P]."""

        def encode(prefix: str) -> tuple[Tensor, ...]:
            found = pipe.encode_prompt(
                **{name: values[f"{prefix}{name}"] for name in _ENCODED},
                prompt_template=values["prompt_template"],
                num_videos_per_prompt=values["num_videos_per_prompt"],
                device=pipe._execution_device,
                max_sequence_length=values["max_sequence_length"],
            )
            text, pooled, mask = (each.to(pipe.transformer.dtype).float() for each in found)
            return text, pooled, mask

        branches = [encode(prefix) for prefix in ("", "negative_")[: 1 + is_guided(values)]]
        needed = max(_own_tokens(text, mask) for text, _, mask in branches)
        if text_tokens is not None and needed > text_tokens:
            raise IncompatibleOptions(
                f"a text of {needed} tokens with engines for {text_tokens}",
                expected=f"at most {text_tokens}",
                fix="pass a shorter prompt, or enable the pipeline without engines",
            )
        length = text_tokens or max(text.shape[1] for text, *_ in branches)
        given, *others = (_of_length(length, *branch) for branch in branches)
        return (given, others[0] if others else None), pipe.transformer.dtype

    def prompt_tokens(self, pipe: Any, values: Mapping[str, Any], text_tokens: int) -> int | None:
        """As in the protocol: not known, for no plan cuts a text whose padding is masked."""
        return None

    def start(
        self, pipe: Any, facts: ModelFacts, plan: StagePlan, given: Mapping[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As in the protocol. The noise is float32 whatever the weights are; every step rounds what
        the pipeline goes on from.
        """
        import torch

        grid, (width, height) = plan.stages[-1].grid, plan.size[:2]
        shape = (given["pictures"], facts.latent_channels, grid.frames, grid.height, grid.width)
        check_latents(given["latents"], shape)
        noise = pipe.prepare_latents(
            given["pictures"],
            facts.latent_channels,
            height,
            width,
            frames_of(plan.size),
            torch.float32,
            pipe._execution_device,
            given["generator"],
            given["latents"],
        )
        # On the CPU, where halving gives the same coarse levels whatever the device.
        field = noise.float().cpu()
        return field if grid.frames > 1 else field[:, :, 0], ()

    def features(self, pipe: Any, latents: Tensor) -> tuple[Tensor, ...]:
        """Raises IncompatibleOptions: the family has no graph for selective edits."""
        from fresco_trt.models.hunyuan.components import no_features

        raise no_features()

    def shown(self, tokens: Tensor, grid: Grid) -> Tensor:
        """As in the protocol: latents [B,C,F,h,w]."""
        return unpack_clip(tokens, grid)

    def packed(self, latents: Tensor) -> Tensor:
        """As in the protocol."""
        return pack_clip(latents)

    def pixels(self, pipe: Any, plan: StagePlan, tokens: Tensor) -> Tensor:
        """As in the protocol: tiled or not as the pipeline's VAE is set."""
        from diffusers.utils.torch_utils import get_module_execution_device

        vae = pipe.vae
        latents = self.shown(tokens, plan.stages[-1].grid)
        known = latents.to(get_module_execution_device(vae), vae.dtype) / vae.config.scaling_factor
        found: Tensor = vae.decode(known, return_dict=False)[0]
        return found

    def finished(self, pipe: Any, pixels: Tensor, output_type: str) -> Any:
        """As in the protocol: for each clip its frames."""
        return pipe.video_processor.postprocess_video(pixels, output_type=output_type)

    def wrapped(self, pictures: Any) -> Any:
        """A HunyuanVideoPipelineOutput, of ``frames``."""
        from diffusers.pipelines.hunyuan_video.pipeline_output import HunyuanVideoPipelineOutput

        return HunyuanVideoPipelineOutput(frames=pictures)


def _own_tokens(text: Tensor, mask: Tensor) -> int:
    """How many of the text's tokens [B,T,D] are the longest prompt's own. Raises
    IncompatibleOptions for a mask [B,T] that is none of padding behind a prompt: diffusers reads
    but its sum where text and clip are joined.
    """
    if mask.shape != text.shape[:2]:
        given = f"a prompt_attention_mask of {list(mask.shape)} for a text of {list(text.shape)}"
    elif not (mask.diff(dim=1) <= 0).all() or not ((mask == 0) | (mask == 1)).all():
        given = "a prompt_attention_mask with gaps"
    else:
        return int(mask.sum(dim=1).max())
    raise IncompatibleOptions(
        given,
        expected="1 for each of a prompt's tokens, and 0 for the padding behind them",
        fix="pass what encode_prompt gives",
    )


def _of_length(length: int, text: Tensor, pooled: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """A branch's inputs with a text of ``length`` tokens, which its own are not more than."""
    from torch.nn.functional import pad

    from fresco_trt.models.masked import HIDDEN

    left = length - text.shape[1]  # below 0 it cuts padding
    bias = (pad(mask, (0, left)) - 1) * HIDDEN
    return {"text": pad(text, (0, 0, 0, left)), BIAS: bias, "pooled": pooled}
