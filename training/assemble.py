"""A trained demo model as the folder that diffusers' FluxPipeline loads, and back.

A student of a packaged model is stored as its transformer alone, with the name of that model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.models.checkpoint import ENCODER_NAME, WEIGHTS_NAME
from fresco_trt.models.registry import model_facts
from fresco_trt.models.weights import SHARES_NAME, bundled_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo

    from training.model import DemoModel
    from training.rounding import Inputs
    from training.video_model import VideoModel


def store_pipeline(
    model: DemoModel,
    vae: AutoencoderKL,
    out: Path,
    *,
    dtype: torch.dtype = torch.float16,
    encoders: torch.dtype = torch.float32,
) -> None:
    """Write the pipeline folder; the transformer and codec in ``dtype``.

    The text encoders' configurations say float32, whatever they are stored in: loaders keep the
    type that these name, and mixed types fail in FLUX.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    rule = model_facts("flux-tiny").shift
    if rule is None:
        raise ValueError("flux-tiny is trained with a resolution-dependent shift")
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=rule.base_shift,
        max_shift=rule.max_shift,
        base_image_seq_len=rule.base_tokens,
        max_image_seq_len=rule.max_tokens,
    )
    pipeline = FluxPipeline(
        scheduler=scheduler,
        vae=vae.to(dtype),
        **{name: getattr(model, name).to(encoders) for name in _ENCODERS},
        tokenizer=model.tokenizer,
        tokenizer_2=model.tokenizer_2,
        transformer=model.transformer.to(dtype),
    )
    pipeline.save_pretrained(out)
    _say_float32(out)
    _finish(out)


def store_student(model: DemoModel, out: Path, teacher: str = "flux-tiny") -> None:
    """Write the transformer as its difference to that of ``teacher``, in 4 bits, and that its other
    parts are ``teacher``'s, which must ship whole with the package.

    Raises ValueError for a model whose text encoders are not ``teacher``'s: it would be told
    another text than it learnt from.
    """
    known = read_pipeline(bundled_folder(teacher))
    for part in _ENCODERS:
        own, theirs = (dict(getattr(each, part).state_dict()) for each in (model, known))
        others = [name for name in own if not torch.allclose(own[name], theirs[name], atol=1e-5)]
        if others:
            raise ValueError(f"{part} of the student is not that of {teacher}: {others[0]} differs")
    model.transformer.save_pretrained(out / _TRANSFORMER)
    _store_difference(model, out, teacher, {})
    shares = json.dumps({"parts_of": teacher}, indent=2)
    (out / SHARES_NAME).write_text(f"{shares}\n", encoding="utf-8")
    _finish(out)


def store_editor(
    model: DemoModel, out: Path, inputs: Mapping[str, Inputs], of: str = "flux-tiny"
) -> None:
    """Write the pipeline folder of a model that edits, trained from the packaged one ``of``: the
    transformer as its difference to that one's, in 4 bits rounded by the ``inputs`` of its layers,
    the encoders in float16, the rest a copy.

    The encoders' configurations say float32, which loaders make of what is stored.
    """
    from diffusers import FluxKontextPipeline

    start = bundled_folder(of)
    parts: dict[str, Any] = {name: getattr(model, name) for name in (*_ENCODERS, *_TOKENIZERS)}
    for name in _ENCODERS:
        parts[name] = parts[name].half()
    pipeline = FluxKontextPipeline.from_pretrained(
        start, transformer=model.transformer, **parts, low_cpu_mem_usage=False
    )
    pipeline.save_pretrained(out)
    for part in ("vae", "scheduler"):
        shutil.copytree(start / part, out / part, dirs_exist_ok=True)
    _say_float32(out)
    _store_difference(model, out, of, inputs)
    _finish(out)


def _store_difference(model: DemoModel, out: Path, of: str, inputs: Mapping[str, Inputs]) -> None:
    """In place of the transformer's weights that lie there."""
    from safetensors.torch import save_file

    from fresco_trt.models.difference import DIFFERENCE_NAME, read_whole
    from training.rounding import rounded_difference

    base = read_whole(bundled_folder(of) / _TRANSFORMER)
    change = rounded_difference(model.transformer.state_dict(), base, inputs)
    save_file(change, out / _TRANSFORMER / DIFFERENCE_NAME, {"of": of})
    (out / _TRANSFORMER / WEIGHTS_NAME).unlink()


def store_video(model: VideoModel, vae: AutoencoderKLHunyuanVideo, out: Path) -> None:
    """Write the folder that diffusers' HunyuanVideoPipeline loads, every weight in float16.

    The encoders' configurations say float32, which loaders make of what is stored.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline

    encoders: list[Any] = [getattr(model, name).half() for name in _ENCODERS]
    pipeline = HunyuanVideoPipeline(
        text_encoder=encoders[0],
        tokenizer=model.tokenizer,
        transformer=model.transformer.to(torch.float16),
        vae=vae.to(torch.float16),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=model_facts("hunyuan-tiny").fixed_shift),
        text_encoder_2=encoders[1],
        tokenizer_2=model.tokenizer_2,
    )
    pipeline.save_pretrained(out)
    _say_float32(out)
    _finish(out)


def _say_float32(out: Path) -> None:
    for part in _ENCODERS:
        config = out / part / "config.json"
        fields = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
        config.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _finish(out: Path) -> None:
    for config in (*out.glob("*/config.json"), *out.glob("model_index.json")):
        _drop_origin(config)
    for file in out.rglob("*"):
        if file.is_file():
            file.chmod(0o644)


def read_pipeline(folder: Path) -> DemoModel:
    """The demo model of a folder that :func:`store_pipeline` wrote, in float32, to train it on."""
    from training.model import DemoModel

    model = DemoModel(guidance=True)
    for part in (_TRANSFORMER, *_ENCODERS):
        _read_part(model, folder, part)
    return model


def read_student(folder: Path, teacher: Path) -> DemoModel:
    """The student of a folder that :func:`store_student` wrote, within its teacher's encoders."""
    model = read_pipeline(teacher)
    _read_part(model, folder, _TRANSFORMER)
    return model


_TRANSFORMER, _ENCODERS = "transformer", ("text_encoder", "text_encoder_2")

_TOKENIZERS = ("tokenizer", "tokenizer_2")

_TIED = {"encoder.embed_tokens.weight"}
"""Weights that are another name for a stored one."""


def _read_part(model: DemoModel, folder: Path, part: str) -> None:
    from safetensors.torch import load_file

    from fresco_trt.models.difference import read_whole

    is_transformer = part == _TRANSFORMER
    tensors = (
        read_whole(folder / part) if is_transformer else load_file(folder / part / ENCODER_NAME)
    )
    stored = {name: value.float() for name, value in tensors.items()}
    missing = getattr(model, part).load_state_dict(stored, strict=False).missing_keys
    if set(missing) - _TIED:
        raise ValueError(f"{folder / part} lacks {', '.join(missing)}")


def _drop_origin(config: Path) -> None:
    """Take out where a part was loaded from: a shipped folder names no other machine's paths."""
    fields = json.loads(config.read_text(encoding="utf-8"))
    kept = {name: value for name, value in fields.items() if name != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
