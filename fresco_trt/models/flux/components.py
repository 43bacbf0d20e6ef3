"""What surrounds a FLUX transformer: prompt encoders and decoder at request time, and the encoder.

All of it is read from a diffusers pipeline folder (in a bundle, or outside it); the transformer's
own weights are not touched. The transformer itself runs as engines.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import ComponentFailed, FrescoError, OutOfDeviceMemory, PlanError
from fresco_trt.files.canonical_json import excerpt
from fresco_trt.models.family import PromptWarning
from fresco_trt.models.finite import require_finite
from fresco_trt.models.flux.parts import load_codec, load_encoder
from fresco_trt.models.flux.tokens import own_tokens
from fresco_trt.models.parts import REBUILD, check_vocabulary, load_tokenizer
from fresco_trt.models.pipeline_folder import PASS_FOLDER
from fresco_trt.models.weights import weights_digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import Tensor

_NO_MEMORY = re.compile("allocate memory|out of memory", re.IGNORECASE)
_SHOWN = 80  # characters of a prompt that a warning repeats
_VAE = "the vae of the pipeline folder"


# --- prompts ----------------------------------------------------------------------------------


class FluxPrompt:
    """Prompt text to engine inputs: the pooled vector and the token sequence.

    `folder` is a pipeline folder, `text_tokens` the length the engines were built for. Raises
    WeightsNotFound for a folder that transformers cannot load.
    """

    def __init__(self, folder: Path, text_tokens: int) -> None:
        self._pooled = _Tokens(folder / "tokenizer", "pooled")
        self._sequence = _Tokens(folder / "tokenizer_2", "sequence")
        self._encoder = load_encoder(folder / "text_encoder")
        self._encoder_2 = load_encoder(folder / "text_encoder_2")
        for tokens, encoder in ((self._pooled, self._encoder), (self._sequence, self._encoder_2)):
            tokens.require_known_to(encoder)
        self._lengths = self._encoder.config.max_position_embeddings, text_tokens

    def __call__(self, prompt: str, picture: Image | None = None) -> dict[str, Tensor]:
        """`pooled` [1,P] and `text` [1,T,D], float32. The source of an edit is none of these
        encoders' business.

        Warns (PromptWarning) where the prompt is cut and of words that have no token. Raises
        PlanError for a string that is not text, TypeError for another type, NonFiniteValues if an
        encoder gives any, ComponentFailed or OutOfDeviceMemory for what a library raises.
        """
        import torch

        require_text(prompt)
        positions, text_length = self._lengths
        with using("tokenizer"):
            clip = self._pooled.ids(prompt, min(positions, self._pooled.limit))
        with using("tokenizer_2"):
            words = self._sequence.ids(prompt, text_length)
        self._warn_unknown(prompt)
        with torch.no_grad(), using("text_encoder"):
            pooled = self._encoder(clip).pooler_output
        with torch.no_grad(), using("text_encoder_2"):
            text = self._encoder_2(words)[0]
        for name, value in (("text_encoder", pooled), ("text_encoder_2", text)):
            require_finite(value, f"the {name} of the pipeline folder")
        return {"pooled": pooled.float().contiguous(), "text": text.float().contiguous()}

    def tokens(self, prompt: str) -> int:
        """As in the protocol, of the sequence encoder: the mark at the end is the prompt's. Raises
        as a call does.
        """
        require_text(prompt)
        with using("tokenizer_2"):
            return self._sequence.own(prompt, self._lengths[1])

    def _warn_unknown(self, prompt: str) -> None:
        """One warning for both encoders: in the demo they know the same words."""
        unknown = []
        for part, tokens in (("tokenizer", self._pooled), ("tokenizer_2", self._sequence)):
            with using(part):
                unknown += tokens.unknown(prompt)
        if unknown:
            warn(f"the model knows no such words: {short(' '.join(dict.fromkeys(unknown)))}")


class _Tokens:
    """A tokenizer of a pipeline folder, and what it makes of a prompt."""

    def __init__(self, folder: Path, encoder: str) -> None:
        self._tokenizer: Any = load_tokenizer(folder)
        self._encoder = encoder
        self._folder = folder

    def require_known_to(self, encoder: Any) -> None:
        """Raise WeightsNotFound unless the encoder has an embedding for every token."""
        check_vocabulary(self._tokenizer, encoder, self._folder)

    @property
    def limit(self) -> int:
        """The tokenizer's own: diffusers keeps to that of CLIP's, and not to that of T5's."""
        return int(self._tokenizer.model_max_length)

    def ids(self, prompt: str, length: int) -> Tensor:
        """Token ids [1, length], padded or cut; warns of what is cut."""
        whole = self._whole(prompt)
        if len(whole) > length:
            # The marks at both ends stay: what is lost begins one place before the limit.
            lost = self._tokenizer.decode(whole[length - 1 :], skip_special_tokens=True)
            warn(
                f"the prompt has {len(whole)} tokens, the {self._encoder} encoder takes {length}; "
                f"it does not see: {short(lost)}"
            )
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        found: Tensor = self._tokenizer(prompt, max_length=length, **options).input_ids
        return found

    def own(self, prompt: str, length: int) -> int:
        """How many of the ids stand in front of the padding."""
        return own_tokens(self._tokenizer, [prompt], length)

    def unknown(self, prompt: str) -> list[str]:
        """Words without a token of their own; sub-word tokenizers know every word."""
        mark = self._tokenizer.unk_token_id
        known = mark is None or mark == self._tokenizer.eos_token_id
        if known or mark not in self._whole(prompt):
            return []
        return [word for word in dict.fromkeys(prompt.split()) if mark in self._whole(word)]

    def _whole(self, text: str) -> list[int]:
        # Not verbose: the library would say on its own that the prompt is too long.
        found: list[int] = self._tokenizer(text, verbose=False).input_ids
        return found


def require_text(prompt: str) -> None:
    """Raise TypeError or PlanError for what is no text."""
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt is one str, not {type(prompt).__name__}")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise PlanError(
            f"the prompt {short(ascii(prompt))}",
            expected="text; this has bytes that are not UTF-8",
            fix="pass the prompt in UTF-8",
        )


def short(text: str) -> str:
    """One line of bounded length, so that a long prompt does not flood its own warning."""
    line = " ".join(text.split())
    return repr(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}...")


def warn(message: str) -> None:
    """A PromptWarning, told of whoever asked for the prompt to be encoded."""
    warnings.warn(message, PromptWarning, stacklevel=4)


# --- pictures ---------------------------------------------------------------------------------


class FluxDecoder:
    """Latents to pixels through the pipeline's AutoencoderKL, on the CPU in float32.

    Raises WeightsNotFound for a folder that diffusers cannot load.
    """

    def __init__(self, folder: Path) -> None:
        self._vae = load_codec(folder / "vae")

    def __call__(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Pictures uint8 [B,H,W,3] of normalised latents [B,C,h,w].

        Raises NonFiniteValues where the VAE gives any, ComponentFailed or OutOfDeviceMemory for
        what its library raises.
        """
        import torch

        with torch.no_grad(), using("vae"):
            pictures = self._vae.decode(self._scaled(latents)).sample
        require_finite(pictures, _VAE)
        pixels = (pictures / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        array: npt.NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        return array

    def features(self, latents: Tensor) -> tuple[Tensor, ...]:
        """As :func:`decoder_features`, on the CPU. Raises as a call does."""
        with using("vae"):
            return decoder_features(self._vae, self._scaled(latents), _VAE)

    def _scaled(self, latents: Tensor) -> Tensor:
        """As the VAE knows them, of normalised ones."""
        config = self._vae.config
        scaled: Tensor = latents.cpu() / config.scaling_factor + config.shift_factor
        return scaled


def decoder_features(vae: Any, latents: Tensor, name: str) -> tuple[Tensor, ...]:
    """Maps float32 after the decoder's first convolution, its middle and its first upsampling
    block: the depths that SpotEdit compares (arXiv 2512.22323, code). ``latents`` are as the VAE
    knows them. Raises NonFiniteValues, of the VAE ``name``, where it gives any.
    """
    import torch

    decoder = vae.decoder
    with torch.no_grad():
        if vae.post_quant_conv is not None:
            latents = vae.post_quant_conv(latents)
        first = decoder.conv_in(latents)
        middle = decoder.mid_block(first)
        maps = first, middle, decoder.up_blocks[0](middle)
    for each in maps:
        require_finite(each, name)
    return tuple(each.float() for each in maps)


class FluxEncoder:
    """Pixels to latents through the pipeline's AutoencoderKL: what :class:`FluxDecoder` undoes.

    On the CPU in float32. Raises WeightsNotFound for a folder that diffusers cannot load, or whose
    configuration does not say how its latents are normalised.
    """

    def __init__(self, folder: Path) -> None:
        self._vae = load_codec(folder / "vae", fix=PASS_FOLDER)
        config = self._vae.config
        self.scaling: float = config.scaling_factor
        self.shift: float = config.shift_factor
        self.channels: int = config.latent_channels
        self.scale: int = 2 ** (len(config.block_out_channels) - 1)

    @property
    def digest(self) -> str:
        """SHA-256 of the VAE's weights, as :func:`~fresco_trt.models.weights.weights_digest`."""
        return weights_digest(self._vae)

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Normalised latents float32 [B,C,h,w] of sRGB pictures uint8 [B,H,W,3].

        The posterior's means: no draw is involved. Sides must be multiples of ``scale``. Raises
        ComponentFailed or OutOfDeviceMemory for what the VAE's library raises.
        """
        import torch

        pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad(), using("vae"):
            means = self._vae.encode(pictures).latent_dist.mean
        normalised: Tensor = (means - self.shift) * self.scaling
        return normalised


@contextmanager
def using(part: str) -> Iterator[None]:
    """What a library raises while a part runs, as ComponentFailed or OutOfDeviceMemory. A warning
    that the caller has made an error stays what it is.
    """
    try:
        yield
    except (FrescoError, Warning):
        raise
    except Exception as error:
        given = f"the {part} of the pipeline folder failed ({excerpt(error)})"
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            raise OutOfDeviceMemory(
                given,
                expected="enough memory to run it",
                fix="use a smaller --size, or close other programs",
            ) from error
        raise ComponentFailed(
            given,
            expected="a part that runs",
            fix=f"{REBUILD}; if it is one, report this with its config.json",
        ) from error
