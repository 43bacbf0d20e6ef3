"""The demo's tokenizers know every word of the captions."""

from __future__ import annotations

import random

import pytest

from fresco_trt.bench.scenes.scene import random_scene
from training.text import new_tokenizers

SCENES = [random_scene(random.Random(seed)) for seed in range(40)]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.caption)
def test_both_tokenizers_know_every_caption(scene: object) -> None:
    caption = scene.caption  # type: ignore[attr-defined]
    for tokenizer in new_tokenizers():
        ids = tokenizer(caption).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == caption
