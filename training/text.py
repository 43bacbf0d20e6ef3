"""The demo's text side: word-level tokenizers and two small encoders in FLUX.1's roles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fresco_trt.bench.scenes.scene import COLOURS, OBJECTS, PATTERNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

CLIP_TOKENS = 32
"""Length of the pooled encoder's input, padding included."""

TEXT_WIDTH = 128


def vocabulary() -> list[str]:
    """Every word of the caption grammar, in a fixed order."""
    names = [*OBJECTS, *COLOURS, *PATTERNS]
    words = {word for name in names for word in name.split()}
    return sorted(words | {"a", "an", "and", "on", "background"})


def new_tokenizers(
    more: Sequence[str] = (),
) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """The pooled encoder's tokenizer (with start and end marks) and the sequence encoder's.

    ``more`` are words behind those of captions, whose ids stay what they are.
    """
    words = [*vocabulary(), *more]
    clip = word_tokenizer("<|startoftext|> $A <|endoftext|>", CLIP_TOKENS, words)
    sequence = word_tokenizer("$A <|endoftext|>", 512, words)
    return clip, sequence


def word_tokenizer(
    template: str, length: int, words: Sequence[str], marks: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer that knows ``words``, and ``marks``, each one token wherever it stands.

    ``template`` is what stands around a text, of the start and end marks.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<|startoftext|>", "<|endoftext|>"]
    ids = {word: i for i, word in enumerate([*special, *words, *marks])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(s, ids[s]) for s in special[2:]]
    )
    tokenizer.add_special_tokens(list(marks))
    build: Any = PreTrainedTokenizerFast
    built: PreTrainedTokenizerFast = build(
        tokenizer_object=tokenizer,
        model_max_length=length,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
    )
    return built


def new_encoders(seed: int, more: int = 0) -> tuple[CLIPTextModel, T5EncoderModel]:
    """Untrained encoders: 2 layers of width 128 each; the first gives the pooled vector.

    ``more`` is how many words they know beside those of captions.
    """
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    words = len(vocabulary()) + 4 + more
    clip = CLIPTextConfig(
        vocab_size=words,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        projection_dim=TEXT_WIDTH,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    sequence = T5Config(
        vocab_size=words,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=3,
    )
    return CLIPTextModel(clip), T5EncoderModel(sequence)
