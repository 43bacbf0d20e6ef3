"""Prompts as HunyuanVideo's LLaMA and CLIP read them: diffusers' own pipeline encodes.

Under ``components.py``. The words that stand around a prompt, and how many tokens of them are cut
off again, are diffusers'.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.finite import require_finite
from fresco_trt.models.flux.components import require_text, short, using, warn
from fresco_trt.models.hunyuan.parts import load_encoder
from fresco_trt.models.hunyuan.signatures import BIAS
from fresco_trt.models.masked import HIDDEN
from fresco_trt.models.parts import check_vocabulary, load_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

POOLED_TOKENS = 77
"""How many tokens CLIP takes."""


class HunyuanPrompt:
    """Prompt text to engine inputs: the sequence with what hides its padding, the pooled vector.

    `folder` is a pipeline folder, `text_tokens` the length that the engines were built for. Raises
    WeightsNotFound for a folder that transformers cannot load.
    """

    def __init__(self, folder: Path, text_tokens: int) -> None:
        from diffusers import HunyuanVideoPipeline
        from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video as library

        parts: dict[str, Any] = dict.fromkeys(("scheduler", "vae", "transformer"))
        for number in ("", "_2"):
            tokenizer = load_tokenizer(folder / f"tokenizer{number}")
            encoder = load_encoder(folder / f"text_encoder{number}")
            check_vocabulary(tokenizer, encoder, folder / f"tokenizer{number}")
            parts |= {f"tokenizer{number}": tokenizer, f"text_encoder{number}": encoder}
        untyped: Any = HunyuanVideoPipeline
        self._pipe: Any = untyped(**parts)
        self._template: Any = library.DEFAULT_PROMPT_TEMPLATE
        self._length = text_tokens

    def __call__(self, prompt: str, picture: Image | None = None) -> dict[str, Tensor]:
        """`text` [1,T,D], `text_bias` [1,T] and `pooled` [1,P], float32.

        Warns (PromptWarning) where the prompt is cut. Raises PlanError for a string that is not
        text, TypeError for another type, IncompatibleOptions for a picture, NonFiniteValues if an
        encoder gives any, ComponentFailed or OutOfDeviceMemory for what a library raises.
        """
        import torch

        require_text(prompt)
        if picture is not None:
            raise IncompatibleOptions(
                "a prompt with a picture for HunyuanVideo",
                expected="the prompt alone: its encoders see no picture",
                fix="leave image out",
            )
        pooled = self._pooled(prompt)
        self._warn_of(prompt, self._count(prompt), self._length, "sequence")
        with torch.no_grad(), using("text_encoder"):
            text, _, mask = self._pipe.encode_prompt(
                prompt,
                pooled_prompt_embeds=pooled,
                device=torch.device("cpu"),
                max_sequence_length=self._length,
            )
        for name, value in (("text_encoder", text), ("text_encoder_2", pooled)):
            require_finite(value, f"the {name} of the pipeline folder")
        return {
            "text": text.float().contiguous(),
            BIAS: (mask.float() - 1) * HIDDEN,
            "pooled": pooled.float().contiguous(),
        }

    def tokens(self, prompt: str) -> int:
        """As in the protocol, of the sequence encoder: the marks at the end are the prompt's."""
        require_text(prompt)
        return min(self._count(prompt), self._length)

    def _count(self, prompt: str) -> int:
        """Tokens behind the words that stand in front of every prompt."""
        with using("tokenizer"):
            whole: list[int] = self._pipe.tokenizer(
                self._template["template"].format(prompt), verbose=False
            ).input_ids
        return len(whole) - int(self._template["crop_start"])

    def _pooled(self, prompt: str) -> Tensor:
        import torch

        tokenizer = self._pipe.tokenizer_2
        with using("tokenizer_2"):
            count = len(tokenizer(prompt, verbose=False).input_ids)
            ids = tokenizer(
                prompt,
                padding="max_length",
                max_length=POOLED_TOKENS,
                truncation=True,
                return_tensors="pt",
            ).input_ids
        self._warn_of(prompt, count, POOLED_TOKENS, "pooled")
        with torch.no_grad(), using("text_encoder_2"):
            found: Tensor = self._pipe.text_encoder_2(ids).pooler_output
        return found

    def _warn_of(self, prompt: str, count: int, length: int, encoder: str) -> None:
        if count > length:
            warn(
                f"the prompt {short(prompt)} has {count} tokens, the {encoder} encoder takes "
                f"{length}; it does not see the last ones"
            )
