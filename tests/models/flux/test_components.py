"""The prompt encoders and the decoder: what diffusers computes, quietly, and what they refuse."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fresco_trt.errors import (
    ComponentFailed,
    FrescoError,
    NonFiniteValues,
    OutOfDeviceMemory,
    PlanError,
    UnsupportedWeights,
    WeightsNotFound,
)
from fresco_trt.models.flux.components import (
    FluxDecoder,
    FluxEncoder,
    FluxPrompt,
    PromptWarning,
)
from fresco_trt.models.flux.config import COMPONENTS
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.family import FLUX
from fresco_trt.models.parts import loading
from fresco_trt.models.pipeline_folder import find_vae
from fresco_trt.models.quiet import no_bar
from fresco_trt.models.weights import SHARES_NAME, bundled_folder, components_folder

TINY = bundled_folder("flux-tiny")
PROMPT = "a red apple on a plain blue background"


@pytest.fixture(scope="module")
def prompt() -> FluxPrompt:
    return FluxPrompt(TINY, FLUX_TINY.text_tokens)


def pipeline_folder(folder: Path, parts: tuple[str, ...] = COMPONENTS) -> Path:
    """A folder that has these entries, empty."""
    for part in parts:
        path = folder / part
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text("{}")
        else:
            path.mkdir()
    return folder


def warned(prompt: FluxPrompt, text: str) -> list[str]:
    """What is said about a prompt."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prompt(text)
    assert all(each.category is PromptWarning for each in caught)
    return [str(each.message) for each in caught]


# --- prompts ----------------------------------------------------------------------------------


def test_a_prompt_becomes_the_engines_inputs(prompt: FluxPrompt) -> None:
    inputs = prompt(PROMPT)
    assert {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()} == {
        "pooled": ((1, FLUX_TINY.pooled_dim), torch.float32),
        "text": ((1, FLUX_TINY.text_tokens, FLUX_TINY.text_dim), torch.float32),
    }
    assert all(value.isfinite().all() for value in inputs.values())


def test_the_same_prompt_is_the_same_bit_for_bit_and_another_is_not(prompt: FluxPrompt) -> None:
    first, again, other = prompt(PROMPT), prompt(PROMPT), prompt("a cat on a plain red background")
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, other[name])


@pytest.mark.parametrize("text", [PROMPT, "", "   ", "A Red APPLE"])
def test_a_prompt_of_known_words_says_nothing(prompt: FluxPrompt, text: str) -> None:
    assert warned(prompt, text) == []


def test_each_encoder_says_in_one_line_what_it_does_not_see(prompt: FluxPrompt) -> None:
    text = "a red apple and " * 100 + "\n" + "a cat"
    said = warned(prompt, text)
    limits = ("pooled encoder takes 32", f"sequence encoder takes {FLUX_TINY.text_tokens}")
    assert len(said) == len(limits)
    for sentence, limit in zip(said, limits, strict=True):
        assert limit in sentence
        assert "\n" not in sentence
        assert len(sentence) < 250


def test_what_is_cut_makes_no_difference_and_the_rest_does(prompt: FluxPrompt) -> None:
    # Start and end marks take two of the pooled encoder's places, the end mark one of the other's.
    whole = ["cat"] * 200
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)
        for name, seen in (("pooled", 32 - 2), ("text", FLUX_TINY.text_tokens - 1)):
            base = prompt(" ".join(whole))[name]
            outside = prompt(" ".join([*whole[:seen], "pig", *whole[seen + 1 :]]))[name]
            inside = prompt(" ".join([*whole[: seen - 1], "pig", *whole[seen:]]))[name]
            assert torch.equal(base, outside)
            assert not torch.equal(base, inside)


def test_the_lost_words_are_those_that_are_named(prompt: FluxPrompt) -> None:
    said = warned(prompt, " ".join(["cat"] * 30 + ["pig", "frog"]))
    assert len(said) == 1
    assert "'pig frog'" in said[0]


def test_unknown_words_are_named_once_for_both_encoders(prompt: FluxPrompt) -> None:
    said = warned(prompt, "a zebra and a cat, a zebra")
    assert len(said) == 1
    assert "'zebra cat,'" in said[0]  # the comma is what has no token


def test_the_tokenizers_library_does_not_speak_for_itself(
    prompt: FluxPrompt, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    warned(prompt, "a cat " * 400)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_bytes_that_are_no_text_are_refused(prompt: FluxPrompt) -> None:
    with pytest.raises(PlanError, match="not UTF-8"):
        prompt("a cat \udcff")


@pytest.mark.parametrize("value", [None, 3, ["a cat"], b"a cat"])
def test_another_type_is_the_callers_mistake(prompt: FluxPrompt, value: Any) -> None:
    with pytest.raises(TypeError, match="one str"):
        prompt(value)


# --- pictures ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder() -> FluxDecoder:
    return FluxDecoder(TINY)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 12), (2, 4, 6)])
def test_a_latent_pixel_becomes_a_square_of_pixels(
    decoder: FluxDecoder, shape: tuple[int, int, int]
) -> None:
    batch, height, width = shape
    latents = torch.randn(batch, FLUX_TINY.latent_channels, height, width)
    pixels = decoder(latents)
    scale = FLUX_TINY.vae_scale
    assert pixels.shape == (batch, height * scale, width * scale, 3)
    assert pixels.dtype == "uint8"


def test_pixels_are_what_diffusers_makes_of_the_latents(decoder: FluxDecoder) -> None:
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    untyped: Any = AutoencoderKL
    vae = untyped.from_pretrained(TINY / "vae", low_cpu_mem_usage=False)
    latents = torch.randn(1, FLUX_TINY.latent_channels, 16, 16)
    with torch.no_grad():
        config = vae.config
        pictures = vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    processor: Any = VaeImageProcessor(vae_scale_factor=FLUX_TINY.vae_scale)
    theirs = processor.postprocess(pictures, output_type="np")
    assert (decoder(latents) == (theirs * 255).round().astype("uint8")).all()


@pytest.fixture(scope="module")
def encoder() -> FluxEncoder:
    return FluxEncoder(TINY)


def test_latents_are_the_normalised_means_of_what_diffusers_encodes(encoder: FluxEncoder) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    untyped: Any = AutoencoderKL
    vae = untyped.from_pretrained(TINY / "vae", low_cpu_mem_usage=False)
    pixels = torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8)
    with torch.no_grad():
        pictures = pixels.permute(0, 3, 1, 2) / 127.5 - 1
        means = vae.encode(pictures).latent_dist.mean
    expected = (means - vae.config.shift_factor) * vae.config.scaling_factor
    found = encoder(pixels.numpy())
    assert found.shape == (2, FLUX_TINY.latent_channels, 8, 12)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(found, encoder(pixels.numpy()))


def test_an_encoder_says_what_it_is(encoder: FluxEncoder) -> None:
    assert (encoder.channels, encoder.scale) == (FLUX_TINY.latent_channels, FLUX_TINY.vae_scale)
    config = json.loads((TINY / "vae" / "config.json").read_text())
    assert (encoder.scaling, encoder.shift) == (config["scaling_factor"], config["shift_factor"])
    assert re.fullmatch("[0-9a-f]{64}", encoder.digest)


def test_a_codec_that_does_not_say_how_latents_are_normalised_is_refused(tmp_path: Path) -> None:
    shutil.copytree(TINY / "vae", tmp_path / "vae")
    config = json.loads((TINY / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"shift_factor": None}))
    with pytest.raises(UnsupportedWeights, match=r"vae has shift_factor=None.*pass --weights"):
        FluxEncoder(tmp_path)


# --- loading ----------------------------------------------------------------------------------


def test_loading_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    FluxPrompt(TINY, 128)
    FluxDecoder(TINY)
    assert capfd.readouterr() == ("", "")


def test_silence_is_not_left_behind() -> None:
    from transformers.utils import logging

    def hook(factory: Any, arguments: Any, options: Any) -> str:
        return "the caller's bar"

    before = logging.set_tqdm_hook(hook)
    try:
        with no_bar():
            assert list(logging.tqdm([1, 2])) == [1, 2]
        assert logging.tqdm([1, 2]) == "the caller's bar"
        with pytest.raises(KeyError), no_bar():
            raise KeyError
        assert logging.tqdm([1, 2]) == "the caller's bar"
    finally:
        assert logging.set_tqdm_hook(before) is hook


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "text_encoder_2", "vae"])
def test_a_part_that_cannot_be_loaded_is_named(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("transformer"))
    for file in (folder / part).iterdir():
        file.write_bytes(b"{")
    with pytest.raises(WeightsNotFound) as caught:
        FluxDecoder(folder) if part == "vae" else FluxPrompt(folder, 128)
    assert str(folder / part) in caught.value.given
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae"])
def test_a_part_that_lacks_a_tensor_is_not_made_up(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("transformer"))
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "norm" in name)
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsNotFound) as caught:
        FluxDecoder(folder) if part == "vae" else FluxPrompt(folder, 128)
    assert caught.value.given == f"{folder / part} lacks 1 tensor, the first {name}"


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae"])
def test_a_part_that_gives_what_is_no_number_is_named(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("transformer"))
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    next(iter(tensors.values())).fill_(torch.nan)
    save_file(tensors, file, {"format": "pt"})
    use: Callable[[], object]
    if part == "vae":
        use = partial(FluxDecoder(folder), torch.zeros(1, FLUX_TINY.latent_channels, 4, 4))
    else:
        use = partial(FluxPrompt(folder, FLUX_TINY.text_tokens), PROMPT)
    with pytest.raises(NonFiniteValues, match=f"^the {part} of the pipeline folder gave"):
        use()


def broken(error: Exception) -> Any:
    """A part that raises whatever is asked of it."""

    class Broken:
        model_max_length = 77
        config: Any = type("Config", (), {"scaling_factor": 1.0, "shift_factor": 0.0})

        def __call__(self, *arguments: object, **options: object) -> None:
            raise error

        decode = encode = __call__

    return Broken()


_PLACES: dict[str, Callable[[FluxPrompt], Any]] = {
    "tokenizer": lambda prompt: (prompt._pooled, "_tokenizer"),
    "tokenizer_2": lambda prompt: (prompt._sequence, "_tokenizer"),
    "text_encoder": lambda prompt: (prompt, "_encoder"),
    "text_encoder_2": lambda prompt: (prompt, "_encoder_2"),
}
_RAISED = [
    RuntimeError("shape [1, -4]\n is \x1b[31m" + "invalid " * 500),
    IndexError("list index"),
    OverflowError("int too big"),
    RecursionError("maximum depth"),
    AttributeError("'tuple' object"),
]


@pytest.mark.parametrize("error", _RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("part", [*_PLACES, "vae"])
def test_a_part_that_fails_at_a_request_is_named(
    prompt: FluxPrompt, monkeypatch: pytest.MonkeyPatch, part: str, error: Exception
) -> None:
    use: list[Callable[[], object]] = [partial(prompt, PROMPT)]
    if part == "vae":
        decoder, encoder = object.__new__(FluxDecoder), object.__new__(FluxEncoder)
        decoder._vae = encoder._vae = broken(error)
        use = [partial(decoder, torch.zeros(1, 4, 4, 4))]
        use += [partial(encoder, torch.zeros(1, 8, 8, 3, dtype=torch.uint8).numpy())]
    else:
        monkeypatch.setattr(*_PLACES[part](prompt), broken(error))
        use += [partial(prompt.tokens, PROMPT)] if part == "tokenizer_2" else []
    for each in use:
        with pytest.raises(ComponentFailed, match=f"^the {part} of the pipeline") as caught:
            each()
        assert caught.value.__cause__ is error
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) <= 500
        assert type(error).__name__ in caught.value.given
        assert "build the bundle again" in caught.value.fix


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_a_part_without_memory_is_not_blamed(
    prompt: FluxPrompt, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(prompt, "_encoder_2", broken(error))
    with pytest.raises(OutOfDeviceMemory, match=r"text_encoder_2.*smaller --size"):
        prompt(PROMPT)


def test_a_warning_that_is_an_error_stays_a_warning(prompt: FluxPrompt) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PromptWarning)
        with pytest.raises(PromptWarning):
            prompt("a red apple " * 100)


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_of_another_encoder_is_named(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("transformer"))
    file = folder / part / "tokenizer.json"
    stored = json.loads(file.read_text())
    stored["model"]["vocab"]["zebra"] = len(stored["model"]["vocab"])
    file.write_text(json.dumps(stored))
    with pytest.raises(WeightsNotFound, match=rf"{part} has the token 46, its encoder knows 46"):
        FluxPrompt(folder, 128)


def test_an_encoder_that_cannot_be_loaded_tells_what_to_pass(tmp_path: Path) -> None:
    shutil.copytree(TINY / "vae", tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"{")
    with pytest.raises(WeightsNotFound, match=r"cannot be read .*pass --weights"):
        FluxEncoder(tmp_path)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("transformer"))
    safe = folder / "text_encoder" / "model.safetensors"
    torch.save({}, safe.with_name("pytorch_model.bin"))
    safe.unlink()
    with pytest.raises(UnsupportedWeights, match="is a pickle"):
        FluxPrompt(folder, 128)


# --- where they are ---------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, "random"])
def test_bundled_parts_are_found_without_a_path(weights: str | None) -> None:
    assert FLUX.components.find(weights, "flux-tiny") == TINY


@pytest.mark.parametrize("inside", [".", "transformer", "transformer/model.safetensors"])
def test_a_given_folder_comes_first(tmp_path: Path, inside: str) -> None:
    folder = pipeline_folder(tmp_path / "own")
    (folder / "transformer").mkdir()
    (folder / "transformer" / "model.safetensors").touch()
    assert FLUX.components.find(str(folder / inside), "flux-tiny").resolve() == folder


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pipeline_folder(tmp_path / "own")
    assert FLUX.components.find("~/own", "flux-tiny") == tmp_path / "own"


@pytest.mark.parametrize("inside", [".", "vae", "transformer"])
def test_the_codec_is_the_given_one_or_the_bundled_one(tmp_path: Path, inside: str) -> None:
    assert find_vae(None, "flux-tiny") == TINY
    own = tmp_path / "own"
    shutil.copytree(TINY / "vae", own / "vae")
    (own / "transformer").mkdir()
    assert find_vae(str(own / inside), "flux-tiny").resolve() == own


@pytest.mark.parametrize("weights", [None, "random", "absent", "here", "file.safetensors"])
def test_no_codec_stands_in_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY / "vae", tmp_path / "elsewhere" / "vae")
    if weights == "absent":  # what lies where the command was started belongs to no such path
        shutil.copytree(TINY / "vae", tmp_path / "vae")
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "file.safetensors").touch()
    model = "flux" if weights is None else "flux-tiny"
    with pytest.raises(WeightsNotFound, match="no VAE for flux") as caught:
        find_vae(weights, model)
    assert str(bundled_folder("flux") if weights is None else weights) in caught.value.given


@pytest.mark.parametrize("part", COMPONENTS[1:])
def test_an_incomplete_pipeline_is_not_completed_by_another(tmp_path: Path, part: str) -> None:
    there = tuple(each for each in COMPONENTS if each != part)
    folder = pipeline_folder(tmp_path / "own", there)
    with pytest.raises(WeightsNotFound) as caught:
        FLUX.components.find(str(folder), "flux-tiny")
    assert caught.value.given.endswith(f"lacks {part}")


@pytest.mark.parametrize("model", ["flux", "model-without-repository"])
def test_the_places_looked_at_are_named(tmp_path: Path, model: str) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(WeightsNotFound) as caught:
        FLUX.components.find(str(tmp_path / "own"), model)
    assert str(tmp_path / "own") in caught.value.given
    assert str(bundled_folder(model)) in caught.value.given
    assert "hub" in caught.value.given


def test_an_interrupt_while_loading_is_not_turned_into_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), loading(TINY):
        raise KeyboardInterrupt
    with pytest.raises(FrescoError), loading(TINY):
        raise RuntimeError


# --- parts that are shared --------------------------------------------------------------------


STUDENT = bundled_folder("flux-tiny-turbo")


@pytest.mark.parametrize(
    "weights", [None, "random", str(STUDENT), str(STUDENT / "transformer")], ids=str
)
def test_a_student_draws_with_the_parts_it_says_it_shares(weights: str | None) -> None:
    assert FLUX.components.find(weights, "flux-tiny-turbo") == TINY
    if weights != "random":
        assert find_vae(weights, "flux-tiny-turbo") == TINY


def test_a_folder_says_for_itself_whose_parts_it_shares(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    assert components_folder(own) == own
    (own / SHARES_NAME).write_text('{"parts_of": "flux-tiny"}')
    assert components_folder(own) == TINY
    assert find_vae(str(own), "flux") == TINY  # what the folder says, whatever the model is


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot be read"),
        ("[]", "holds a list"),
        ('{"parts_of": "flux-tiny", "more": 1}', "something else"),
        ('{"parts_of": "../flux-tiny"}', "'../flux-tiny'"),
        ('{"parts_of": "flux-tiny-turbo"}', "packaged models are flux-tiny, flux-tiny-kontext$"),
        ('{"parts_of": 7}', "names 7"),
        ('{"parts_of": ["flux-tiny"]}', "names"),
    ],
)
def test_a_file_that_names_no_whole_model_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / SHARES_NAME).write_text(text)
    with pytest.raises(WeightsNotFound) as caught:
        components_folder(tmp_path)
    assert re.search(told, caught.value.given)
    assert caught.value.fix
