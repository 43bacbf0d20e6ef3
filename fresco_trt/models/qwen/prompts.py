"""Prompts, and pictures beside them, as Qwen2.5-VL reads them: diffusers' own pipelines encode.

Under ``components.py``. Which pipeline a folder is of says its ``model_index.json``: it decides the
words around a prompt, and how large a picture the encoder sees.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.finite import require_finite
from fresco_trt.models.flux.components import require_text, short, using, warn
from fresco_trt.models.parts import check_vocabulary, load_tokenizer, stored
from fresco_trt.models.qwen.parts import load_encoder
from fresco_trt.models.qwen.signatures import MASK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image
    from torch import Tensor

PIPELINES = ("QwenImagePipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline")
"""diffusers' pipelines of this family: the first draws, the others edit."""

SEEN_PIXELS = {PIPELINES[1]: 1024 * 1024, PIPELINES[2]: 384 * 384}
"""How many pixels the encoder sees of a source, about (diffusers' own numbers)."""

_IMAGE = "<|image_pad|>"


class QwenPrompt:
    """Prompt text, and the source of an edit, to engine inputs.

    `folder` is a pipeline folder, `text_tokens` the length that the engines were built for. Raises
    WeightsNotFound for a folder that transformers cannot load.
    """

    def __init__(self, folder: Path, text_tokens: int) -> None:
        import diffusers

        self._kind = kind_of(folder)
        self._length = text_tokens
        tokenizer = load_tokenizer(folder / "tokenizer")
        encoder = load_encoder(folder / "text_encoder")
        check_vocabulary(tokenizer, encoder.model.language_model, folder / "tokenizer")
        parts: dict[str, Any] = {"tokenizer": tokenizer, "text_encoder": encoder}
        if self._kind != PIPELINES[0]:
            parts["processor"] = None
        empty = dict.fromkeys(("scheduler", "vae", "transformer"))
        untyped: Any = diffusers
        self._pipe: Any = getattr(untyped, self._kind)(**parts, **empty)
        if self._kind != PIPELINES[0]:
            self._pipe.processor = Processor(tokenizer, encoder.config.vision_config)

    def __call__(self, prompt: str, picture: Image | None = None) -> dict[str, Tensor]:
        """`text` [1,T,D] and `text_mask` [1,T], float32; `picture` is the source of an edit, RGB.

        Warns (PromptWarning) where the text is cut. Raises PlanError for a string that is not text,
        TypeError for another type, IncompatibleOptions for a picture that nothing reads or that is
        missing, NonFiniteValues if the encoder gives any, ComponentFailed or OutOfDeviceMemory for
        what a library raises.
        """
        import torch
        from torch.nn.functional import pad

        found = self._encoded(prompt, picture)
        count, length = found.shape[1], self._length
        if count > length:
            warn(
                f"the prompt {short(prompt)} has {count} tokens, the engines take {length}; "
                "they do not see the last ones"
            )
        found = found[:, :length]
        require_finite(found, "the text_encoder of the pipeline folder")
        own = torch.arange(length) < found.shape[1]
        text = pad(found.float(), (0, 0, 0, length - found.shape[1]))
        return {"text": text.contiguous(), MASK: own.float()[None]}

    def tokens(self, prompt: str) -> int:
        """As in the protocol, of the words alone, with those that stand around them: a picture's
        are its own.
        """
        require_text(prompt)
        template: str = self._pipe.prompt_template_encode
        start: int = self._pipe.prompt_template_encode_start_idx
        with using("tokenizer"):
            whole: list[int] = self._pipe.tokenizer(
                template.format(prompt), verbose=False
            ).input_ids
        return min(len(whole) - start, self._length)

    def _encoded(self, prompt: str, picture: Image | None) -> Tensor:
        import torch

        require_text(prompt)
        wanted = self._kind != PIPELINES[0]
        if wanted != (picture is not None):
            raise IncompatibleOptions(
                f"a prompt {'without' if wanted else 'with'} a picture for a {self._kind}",
                expected=f"{'the source of an edit' if wanted else 'the prompt alone'}",
                fix="pass image= with the source" if wanted else "leave image out",
            )
        seen: dict[str, Any] = {}
        if picture is not None:
            seen = {"image": resized(picture, SEEN_PIXELS[self._kind])}
            if self._kind == PIPELINES[2]:
                seen = {"image": [seen["image"]]}
        with torch.no_grad(), using("text_encoder"):
            found, _ = self._pipe.encode_prompt(
                prompt, **seen, device=torch.device("cpu"), max_sequence_length=self._length + 1
            )
        text: Tensor = found
        return text


def kind_of(folder: Path) -> str:
    """The pipeline class of a folder. Raises IncompatibleOptions for one of another family."""
    named = stored(folder / "model_index.json").get("_class_name")
    for each in PIPELINES:
        if named == each:
            return each
    raise IncompatibleOptions(
        f"the parts of the pipeline {str(named)[:80]} in {folder}",
        expected=" or ".join(PIPELINES),
        fix="pass --weights from a Qwen-Image pipeline folder",
    )


def seen_size(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Width and height in multiples of 32 of about so many `pixels` at the proportions of `size`,
    as diffusers rounds them.
    """
    ratio = size[0] / size[1]
    width = math.sqrt(pixels * ratio)
    return round(width / 32) * 32, round(width / ratio / 32) * 32


def resized(picture: Image, pixels: int) -> Image:
    """A picture as large as the encoder sees it, by Lanczos."""
    from PIL.Image import Resampling

    size = seen_size(picture.size, pixels)
    return picture if picture.size == size else picture.resize(size, Resampling.LANCZOS)


class Processor:
    """What transformers' ``Qwen2VLProcessor`` makes of text and pictures, with pictures cut into
    patches by its PIL backend: the other one needs torchvision.
    """

    def __init__(self, tokenizer: Any, vision: Any) -> None:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        self._tokenizer = tokenizer
        self._merged = vision.spatial_merge_size**2
        untyped: Any = Qwen2VLImageProcessorPil
        self._pictures = untyped(
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
            min_pixels=4 * (vision.patch_size * vision.spatial_merge_size) ** 2,
            max_pixels=16384 * (vision.patch_size * vision.spatial_merge_size) ** 2,
        )

    def __call__(self, *, text: Sequence[str], images: Any, **options: Any) -> Mapping[str, Any]:
        """Ids and mask of the texts, whose marks of a picture are as many tokens as it has; its
        patches, and how many they are along each side.
        """
        from transformers import BatchFeature

        seen = self._pictures(images=images, return_tensors="pt")
        counts = iter((seen["image_grid_thw"].prod(-1) // self._merged).tolist())
        whole = []
        for each in text:
            first, *others = each.split(_IMAGE)
            whole.append(first + "".join(f"{_IMAGE * next(counts)}{other}" for other in others))
        ids = self._tokenizer(whole, **options)
        found: Mapping[str, Any] = BatchFeature({**ids, **seen})
        return found
