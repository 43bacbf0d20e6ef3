"""What diffusers tests of its FluxPipeline, on pipelines that are enabled with one stage.

The cases are those of diffusers 0.42 that run on a CPU, in our own words: each makes its pipelines
from a small random transformer, draws, and says what must hold. Every case runs plain and enabled;
it has to hold in both, and each picture has to be the same in both, bit for bit.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fresco_trt
from fresco_trt.errors import IncompatibleOptions

Parts = Mapping[str, Any]
PROMPT = "a painting of a squirrel that eats a burger"
LONG = "very long " * 100
DENOISER = ["to_q", "to_k", "to_v", "to_out.0"]
ENCODER = ["q_proj", "k_proj", "v_proj", "out_proj"]
HOOKS = "a transformer with hooks of its own"


def small_parts(encoders: Parts, *, blocks: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """Parts of a pipeline whose pictures are 8x8 pixels in a decoder that enlarges nothing."""
    import diffusers

    untyped: Any = diffusers
    torch.manual_seed(0)
    transformer = untyped.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=blocks[0],
        num_single_layers=blocks[1],
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=encoders["text_encoder_2"].config.d_model,
        pooled_projection_dim=encoders["text_encoder"].config.hidden_size,
        axes_dims_rope=[4, 4, 8],
    )
    vae = untyped.AutoencoderKL(
        sample_size=32,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    )
    scheduler = untyped.FlowMatchEulerDiscreteScheduler()
    own = {"transformer": transformer.eval(), "vae": vae.eval(), "scheduler": scheduler}
    return {
        **copy.deepcopy(dict(encoders)),
        **own,
        "image_encoder": None,
        "feature_extractor": None,
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """Makes pipelines, plain or enabled, and keeps what they drew."""

    encoders: Parts
    folder: Path
    enabled: bool
    drawn: list[Tensor] = field(default_factory=list)

    def parts(self, **options: Any) -> dict[str, Any]:
        return small_parts(self.encoders, **options)

    def pipe(self, parts: Parts | None = None) -> Any:
        import diffusers

        untyped: Any = diffusers
        return self.ready(untyped.FluxPipeline(**(self.parts() if parts is None else parts)))

    def loaded(self, **options: Any) -> Any:
        """The pipeline that was saved in the folder."""
        import diffusers

        untyped: Any = diffusers
        options = {"low_cpu_mem_usage": False, **options}
        return self.ready(untyped.FluxPipeline.from_pretrained(self.folder, **options))

    def ready(self, pipe: Any) -> Any:
        pipe.set_progress_bar_config(disable=True)
        if self.enabled and pipe.transformer is not None:
            fresco_trt.enable(pipe, stages=1)
        return pipe

    def draw(self, pipe: Any, **given: Any) -> Tensor:
        basics: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 2, "guidance_scale": 5.0}
        basics |= {"height": 8, "width": 8, "max_sequence_length": 16, "output_type": "pt"}
        basics["generator"] = torch.Generator("cpu").manual_seed(0)
        torch.manual_seed(0)
        picture = pipe(**{**basics, **given})[0]
        assert isinstance(picture, Tensor)
        self.drawn.append(picture)
        return picture

    def base(self) -> Tensor:
        return self.draw(self.pipe())


class Case(NamedTuple):
    run: Callable[[Bench], None]
    adapters: bool


CASES: dict[str, Case] = {}
REFUSED: dict[str, str] = {
    "ip_adapter": "has a processor of the class FluxIPAdapterAttnProcessor",
    "faster_cache_pictures": HOOKS,
    "faster_cache_state": HOOKS,
}
"""Cases that an enabled pipeline refuses, by name, and how: stage graphs attend to text and latents
alone, and FasterCache hooks the whole forward, which no stage graph calls.
"""


def case(run: Callable[[Bench], None]) -> Callable[[Bench], None]:
    CASES[run.__name__] = Case(run, adapters=False)
    return run


def adapter_case(run: Callable[[Bench], None]) -> Callable[[Bench], None]:
    CASES[run.__name__] = Case(run, adapters=True)
    return run


def differ(first: Tensor, second: Tensor) -> bool:
    return not torch.allclose(first, second, atol=1e-3, rtol=1e-3)


def alike(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, atol=1e-4, rtol=1e-4)


# --- the pipeline -----------------------------------------------------------------------------


@case
def save_and_load(bench: Bench) -> None:
    pipe = bench.pipe()
    pipe.save_pretrained(bench.folder)
    assert alike(bench.draw(bench.loaded()), bench.draw(pipe))


@case
def output_shape(bench: Bench) -> None:
    assert bench.base().shape == (1, 3, 8, 8)


@case
def call_signature(bench: Bench) -> None:
    taken = set(inspect.signature(type(bench.pipe()).__call__).parameters)
    named = {"prompt", "height", "width", "guidance_scale", "prompt_embeds", "pooled_prompt_embeds"}
    assert named | {"num_images_per_prompt", "generator", "latents", "output_type"} <= taken


@case
def batch_of_unequal_prompts(bench: Bench) -> None:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(2)]
    assert len(bench.draw(bench.pipe(), prompt=[PROMPT, LONG], generator=generators)) == 2


@case
def batch_is_as_single(bench: Bench) -> None:
    pipe = bench.pipe()
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(3)]
    batch = bench.draw(pipe, prompt=[PROMPT, PROMPT[:9], LONG], generator=generators)
    assert len(batch) == 3
    assert alike(batch[0], bench.draw(pipe)[0])


@case
def tuple_and_object(bench: Bench) -> None:
    pipe = bench.pipe()
    assert torch.equal(bench.draw(pipe), bench.draw(pipe, return_dict=False))


@case
def components(bench: Bench) -> None:
    parts = bench.parts()
    assert bench.pipe(parts).components.keys() == parts.keys()


@case
def optional_components(bench: Bench) -> None:
    pipe = bench.pipe()
    for name in pipe._optional_components:
        setattr(pipe, name, None)
    pipe.save_pretrained(bench.folder)
    loaded = bench.loaded()
    assert all(getattr(loaded, name) is None for name in pipe._optional_components)
    assert alike(bench.draw(loaded), bench.draw(pipe))


@case
def to_dtype(bench: Bench) -> None:
    pipe = bench.pipe()
    pipe.to(dtype=torch.float16)
    models = [each for each in pipe.components.values() if isinstance(each, torch.nn.Module)]
    assert {model.dtype for model in models} == {torch.float16}


@case
def pictures_per_prompt(bench: Bench) -> None:
    pipe = bench.pipe()
    for prompts in (1, 2):
        for pictures in (1, 2):
            given = {"prompt": [PROMPT] * prompts, "num_images_per_prompt": pictures}
            assert len(bench.draw(pipe, **given)) == prompts * pictures


@case
def guidance(bench: Bench) -> None:
    pipe = bench.pipe()
    first = bench.draw(pipe, guidance_scale=1.0)
    assert bench.draw(pipe, guidance_scale=7.5).shape == first.shape


@case
def callback_tensors(bench: Bench) -> None:
    pipe = bench.pipe()
    names = pipe._callback_tensor_inputs

    def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        assert tensors.keys() <= set(names)
        return tensors

    def look_at_all(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        assert tensors.keys() == set(names)
        return tensors

    def empty(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        if step == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    latent: dict[str, Any] = {"output_type": "latent"}
    latent["callback_on_step_end_tensor_inputs"] = ["latents"]
    bench.draw(pipe, callback_on_step_end=look, **latent)
    latent["callback_on_step_end_tensor_inputs"] = names
    bench.draw(pipe, callback_on_step_end=look_at_all, **latent)
    assert bench.draw(pipe, callback_on_step_end=empty, **latent).abs().sum() == 0


@case
def callback_guidance(bench: Bench) -> None:
    pipe = bench.pipe()

    def raise_it(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        pipe._guidance_scale += 1.0
        return tensors

    bench.draw(pipe, guidance_scale=2.0, callback_on_step_end=raise_it)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps


@case
def variants_saved(bench: Bench) -> None:
    bench.pipe().save_pretrained(bench.folder, variant="fp16")
    index = json.loads((bench.folder / "model_index.json").read_text())
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        assert name in index
        assert any(".fp16." in path.name for path in (bench.folder / name).iterdir())


@case
def variants_loaded(bench: Bench) -> None:
    pipe = bench.pipe()
    pipe.save_pretrained(bench.folder, variant="fp16")
    loaded = bench.loaded(variant="fp16")
    ours, theirs = pipe.transformer.state_dict(), loaded.transformer.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert alike(bench.draw(loaded), bench.draw(pipe))


@case
def variant_that_is_not_there(bench: Bench) -> None:
    bench.pipe().save_pretrained(bench.folder)
    with pytest.raises(ValueError, match="variant=fp16"):
        bench.loaded(variant="fp16")


@case
def encoders_alone(bench: Bench) -> None:
    parts = bench.parts()
    of_text = {name for name in parts if "text" in name or "tokenizer" in name}
    encoder = bench.pipe({name: each if name in of_text else None for name, each in parts.items()})
    embeds, pooled, _ = encoder.encode_prompt(PROMPT, None, max_sequence_length=16)
    drawer = bench.pipe({name: None if name in of_text else each for name, each in parts.items()})
    given = {"prompt": None, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    assert alike(bench.draw(drawer, **given), bench.draw(bench.pipe(parts)))


@case
def dtypes_by_part(bench: Bench) -> None:
    bench.pipe().save_pretrained(bench.folder)
    dtypes = {"vae": torch.bfloat16, "default": torch.float16}
    loaded = bench.loaded(torch_dtype=dtypes)
    assert (loaded.vae.dtype, loaded.transformer.dtype) == (torch.bfloat16, torch.float16)


@case
def two_prompts(bench: Bench) -> None:
    pipe = bench.pipe()
    first, second = bench.draw(pipe), bench.draw(pipe, prompt_2="another prompt")
    assert (first - second).abs().max() > 1e-6


@case
def odd_sizes(bench: Bench) -> None:
    pipe = bench.pipe()
    for height, width in ((32, 32), (72, 57)):
        picture = bench.draw(pipe, height=height, width=width)
        assert picture.shape[-2:] == (height, width // 2 * 2)


@case
def true_guidance(bench: Bench) -> None:
    pipe = bench.pipe()
    guided = bench.draw(pipe, negative_prompt="bad quality", true_cfg_scale=2.0)
    assert not torch.allclose(bench.draw(pipe), guided)


@case
def negative_embeds_of_another_length(bench: Bench) -> None:
    pipe = bench.pipe()
    text, width = pipe.text_encoder_2.config.d_model, pipe.text_encoder.config.hidden_size
    given: dict[str, Any] = {"prompt": None, "prompt_embeds": torch.ones(1, 4, text)}
    given["negative_prompt_embeds"] = torch.ones(1, 5, text)
    for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
        given[name] = torch.ones(1, width)
    with pytest.raises(ValueError, match="must have the same shape when passed directly"):
        bench.draw(pipe, **given, true_cfg_scale=2.0)
    bench.draw(pipe, **given, true_cfg_scale=1.0)


# --- IP adapters ------------------------------------------------------------------------------


@case
def ip_adapter_signature(bench: Bench) -> None:
    taken = inspect.signature(type(bench.pipe()).__call__).parameters
    assert {"ip_adapter_image", "ip_adapter_image_embeds"} <= taken.keys()


@case
def ip_adapter(bench: Bench) -> None:
    pipe = bench.pipe()
    guided = {"negative_prompt": "", "true_cfg_scale": 4.0}
    first = bench.draw(pipe, **guided)
    inner, text = pipe.text_encoder.config.hidden_size, pipe.text_encoder_2.config.d_model
    image = {"proj.weight": torch.randn(4 * text, inner), "proj.bias": torch.zeros(4 * text)}
    image |= {"norm.weight": torch.ones(text), "norm.bias": torch.zeros(text)}
    layers = {}
    for name in ("0.to_k_ip", "0.to_v_ip"):
        layers |= {f"{name}.weight": torch.randn(32, text), f"{name}.bias": torch.zeros(32)}
    state = {"image_proj": image, "ip_adapter": layers}
    pipe.load_ip_adapter(state, weight_name="", image_encoder_pretrained_model_name_or_path=None)
    embeds = torch.randn(1, 1, inner)
    shown = {"ip_adapter_image_embeds": [embeds], "negative_ip_adapter_image_embeds": [embeds]}
    for scale, same in ((0.0, True), (42.0, False)):
        pipe.set_ip_adapter_scale(scale)
        assert alike(bench.draw(pipe, **guided, **shown), first) == same


# --- diffusers' caches ------------------------------------------------------------------------


def cached(bench: Bench, config: Any, *, steps: int, tolerance: float = 0.2) -> None:
    """Near the picture without the cache, and that very picture once it is off again."""
    pipe = bench.pipe(bench.parts(blocks=(2, 1)))
    given = {"num_inference_steps": steps}
    without = bench.draw(pipe, **given)
    config.current_timestep_callback = lambda: pipe.current_timestep
    pipe.transformer.enable_cache(config)
    assert (bench.draw(pipe, **given) - without).abs().max() < tolerance
    pipe.transformer.disable_cache()
    assert torch.equal(bench.draw(pipe, **given), without)


def config(name: str, **options: Any) -> Any:
    import diffusers

    return getattr(diffusers, name)(**options)


def broadcast() -> Any:
    return config(
        "PyramidAttentionBroadcastConfig",
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        spatial_attention_block_identifiers=["transformer_blocks"],
    )


def faster() -> Any:
    return config(
        "FasterCacheConfig",
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 901),
        unconditional_batch_skip_range=2,
        attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True,
    )


def with_state(bench: Bench, options: Any, name: str, steps: int) -> None:
    """Hooks of a cache count the steps of a call, and forget them after it."""
    pipe = bench.pipe(bench.parts(blocks=(2, 2)))
    options.current_timestep_callback = lambda: pipe.current_timestep
    pipe.transformer.enable_cache(options)
    registries = [getattr(each, "_diffusers_hook", None) for each in pipe.transformer.modules()]
    hooks = [each.get_hook(name) for each in registries if each is not None]
    hooks = [hook for hook in hooks if hook is not None]
    assert len(hooks) == 4

    def look(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
        assert all(hook.state.iteration == step + 1 for hook in hooks)
        assert all(hook.state.cache is not None for hook in hooks)
        return {}

    bench.draw(pipe, num_inference_steps=steps, callback_on_step_end=look)
    assert all(hook.state.iteration == 0 and hook.state.cache is None for hook in hooks)


@case
def pyramid_state(bench: Bench) -> None:
    with_state(bench, broadcast(), "pyramid_attention_broadcast", steps=2)


@case
def pyramid_pictures(bench: Bench) -> None:
    cached(bench, broadcast(), steps=2)


@case
def faster_cache_state(bench: Bench) -> None:
    with_state(bench, faster(), "faster_cache_block", steps=4)


@case
def faster_cache_pictures(bench: Bench) -> None:
    cached(bench, faster(), steps=4)


@case
def first_block_cache_pictures(bench: Bench) -> None:
    cached(bench, config("FirstBlockCacheConfig", threshold=0.8), steps=4)


@case
def taylorseer_pictures(bench: Bench) -> None:
    options = {"cache_interval": 5, "disable_cache_before_step": 10, "max_order": 1}
    options |= {"taylor_factors_dtype": torch.bfloat16, "use_lite_mode": True}
    cached(bench, config("TaylorSeerCacheConfig", **options), steps=12)


@case
def mag_cache_pictures(bench: Bench) -> None:
    options: dict[str, Any] = {"threshold": 0.06, "max_skip_steps": 3, "retention_ratio": 0.2}
    options |= {"num_inference_steps": 12, "mag_ratios": torch.ones(12)}
    cached(bench, config("MagCacheConfig", **options), steps=12)


# --- LoRA -------------------------------------------------------------------------------------


def adapt(pipe: Any, *parts: str, name: str = "default", **options: Any) -> dict[str, Any]:
    """Put an adapter that changes something on parts of a pipeline (all that take one)."""
    from peft import LoraConfig

    targets = {"transformer": DENOISER, "text_encoder": ENCODER}
    found = {part: getattr(pipe, part) for part in parts or targets}
    for part, module in found.items():
        given = {"r": 4, "lora_alpha": 4, "target_modules": targets[part], **options}
        module.add_adapter(LoraConfig(init_lora_weights=False, **given), adapter_name=name)
    return found


def store(bench: Bench, pipe: Any, parts: Parts, **metadata: Any) -> Path:
    from peft.utils import get_peft_model_state_dict

    layers = {
        f"{part}_lora_layers": get_peft_model_state_dict(each) for part, each in parts.items()
    }
    pipe.save_lora_weights(bench.folder, **layers, **metadata)
    return bench.folder / "pytorch_lora_weights.safetensors"


def is_adapted(module: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(each, BaseTunerLayer) for each in module.modules())


def saved_and_loaded(bench: Bench, *parts: str, **options: Any) -> None:
    pipe = bench.pipe()
    adapted = adapt(pipe, *parts)
    first = bench.draw(pipe)
    path = store(bench, pipe, adapted)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(path, **options)
    assert all(is_adapted(getattr(pipe, part)) for part in adapted)
    assert alike(bench.draw(pipe), first)


def scaled(bench: Bench, *parts: str) -> None:
    pipe, base = bench.pipe(), bench.base()
    adapt(pipe, *parts)
    whole = bench.draw(pipe)
    half = bench.draw(pipe, joint_attention_kwargs={"scale": 0.5})
    none = bench.draw(pipe, joint_attention_kwargs={"scale": 0.0})
    assert differ(whole, base)
    assert (half - whole).abs().max() > 1e-5
    assert alike(none, base)
    layers = pipe.text_encoder.modules()
    scalings = [each.scaling["default"] for each in layers if hasattr(each, "scaling")]
    assert not is_adapted(pipe.text_encoder) or 1.0 in scalings


def unloaded(bench: Bench, *parts: str) -> None:
    pipe, base = bench.pipe(), bench.base()
    adapted = adapt(pipe, *parts)
    pipe.unload_lora_weights()
    assert not any(map(is_adapted, adapted.values()))
    assert alike(bench.draw(pipe), base)


@adapter_case
def text_adapter(bench: Bench) -> None:
    pipe, base = bench.pipe(), bench.base()
    adapt(pipe, "text_encoder")
    assert (bench.draw(pipe) - base).abs().max() > 1e-5


@adapter_case
def text_adapter_scaled(bench: Bench) -> None:
    pipe, base = bench.pipe(), bench.base()
    adapt(pipe, "text_encoder")
    assert (bench.draw(pipe, joint_attention_kwargs={"scale": 0.5}) - base).abs().max() > 1e-5
    assert alike(bench.draw(pipe, joint_attention_kwargs={"scale": 0.0}), base)


@adapter_case
def text_adapter_unloaded(bench: Bench) -> None:
    unloaded(bench, "text_encoder")


@adapter_case
def text_adapter_saved(bench: Bench) -> None:
    saved_and_loaded(bench, "text_encoder")


@adapter_case
def text_adapter_in_part(bench: Bench) -> None:
    from peft.utils import get_peft_model_state_dict

    pipe = bench.pipe()
    adapt(pipe, "text_encoder", rank_pattern={name: 1 + at for at, name in enumerate(ENCODER)})
    state = get_peft_model_state_dict(pipe.text_encoder)
    first = bench.draw(pipe)
    pipe.unload_lora_weights()
    pipe.load_lora_weights({f"text_encoder.{n}": t for n, t in state.items() if "layers.0" in n})
    assert (bench.draw(pipe) - first).abs().max() > 1e-6


@adapter_case
def text_adapter_in_a_saved_pipeline(bench: Bench) -> None:
    pipe = bench.pipe()
    base = bench.folder / "base"
    pipe.text_encoder.save_pretrained(base)
    pipe.text_encoder.name_or_path = str(base)
    adapt(pipe, "text_encoder")
    first = bench.draw(pipe)
    pipe.save_pretrained(bench.folder)
    loaded = bench.loaded()
    assert is_adapted(loaded.text_encoder)
    assert alike(bench.draw(loaded), first)


@adapter_case
def adapter_saved(bench: Bench) -> None:
    saved_and_loaded(bench)


@adapter_case
def adapter_loaded_with_little_memory(bench: Bench) -> None:
    saved_and_loaded(bench, low_cpu_mem_usage=False)
    saved_and_loaded(bench, low_cpu_mem_usage=True)


@adapter_case
def adapter_scaled(bench: Bench) -> None:
    scaled(bench)


@adapter_case
def adapter_unloaded(bench: Bench) -> None:
    unloaded(bench)


@adapter_case
def adapter_fused(bench: Bench) -> None:
    pipe = bench.pipe()
    adapted = adapt(pipe)
    first = bench.draw(pipe)
    pipe.fuse_lora(components=list(adapted))
    assert pipe.num_fused_loras >= 1
    assert alike(bench.draw(pipe), first)
    pipe.unfuse_lora(components=list(adapted))
    assert pipe.num_fused_loras == 0
    assert alike(bench.draw(pipe), first)


def two_adapters(bench: Bench) -> tuple[Any, Tensor, list[Tensor]]:
    """A pipeline with two adapters, the picture without, with each alone and with both."""
    pipe, base, pictures = bench.pipe(), bench.base(), list[Tensor]()
    for name in ("one", "two"):
        adapt(pipe, name=name)
    for names in ("one", "two", ["one", "two"]):
        pipe.set_adapters(names)
        pictures.append(bench.draw(pipe))
    assert all(differ(picture, base) for picture in pictures)
    assert all(differ(pictures[at], pictures[at - 1]) for at in range(3))
    return pipe, base, pictures


@adapter_case
def adapters_mixed(bench: Bench) -> None:
    pipe, base, _ = two_adapters(bench)
    pipe.disable_lora()
    assert alike(bench.draw(pipe), base)


@adapter_case
def adapters_weighted(bench: Bench) -> None:
    pipe, base, (*_, both) = two_adapters(bench)
    pipe.set_adapters(["one", "two"], [0.5, 0.6])
    assert (bench.draw(pipe) - both).abs().max() > 1e-5
    pipe.disable_lora()
    assert alike(bench.draw(pipe), base)


@adapter_case
def adapters_deleted(bench: Bench) -> None:
    pipe, base, (_, second, _) = two_adapters(bench)
    pipe.delete_adapters("one")
    assert alike(bench.draw(pipe), second)
    pipe.delete_adapters("two")
    assert alike(bench.draw(pipe), base)


@adapter_case
def adapters_fused(bench: Bench) -> None:
    pipe, _, (first, _, both) = two_adapters(bench)
    parts = ["transformer", "text_encoder"]
    for names, picture in ((["one"], first), (["two", "one"], both)):
        pipe.set_adapters(names)
        pipe.fuse_lora(components=parts, adapter_names=names)
        assert pipe.num_fused_loras == len(names)
        assert alike(bench.draw(pipe), picture)
        pipe.unfuse_lora(components=parts)
    assert pipe.num_fused_loras == 0


@adapter_case
def adapter_of_no_such_name(bench: Bench) -> None:
    pipe = bench.pipe()
    adapt(pipe, name="one")
    with pytest.raises(ValueError, match="not in the list of present adapters"):
        pipe.set_adapters("another")
    pipe.set_adapters("one")
    bench.draw(pipe)


@adapter_case
def adapter_weights_of_no_such_part(bench: Bench) -> None:
    pipe = bench.pipe()
    adapt(pipe, name="one")
    pipe.set_adapters("one", adapter_weights={"foo": 0.0})
    pipe.set_adapters("one")
    bench.draw(pipe)


@adapter_case
def adapters_active(bench: Bench) -> None:
    pipe = bench.pipe()
    for name in ("one", "two"):
        adapt(pipe, name=name)
        assert pipe.get_active_adapters() == [name]
    pipe.set_adapters(["one", "two"])
    assert pipe.get_active_adapters() == ["one", "two"]


@adapter_case
def adapters_listed(bench: Bench) -> None:
    pipe = bench.pipe()
    adapt(pipe, name="one")
    adapt(pipe, "transformer", name="two")
    assert pipe.get_list_adapters() == {"transformer": ["one", "two"], "text_encoder": ["one"]}


def scale_is_as_fused(bench: Bench, scale: float) -> None:
    pipe = bench.pipe()
    adapt(pipe, name="one")
    picture = bench.draw(pipe, joint_attention_kwargs={"scale": scale})
    pipe.fuse_lora(components=["transformer", "text_encoder"], lora_scale=scale)
    assert alike(bench.draw(pipe), picture)


@adapter_case
def adapter_scale_as_fused(bench: Bench) -> None:
    scale_is_as_fused(bench, 1.0)


@adapter_case
def adapter_smaller_scale_as_fused(bench: Bench) -> None:
    scale_is_as_fused(bench, 0.8)


@adapter_case
def adapter_without_keys(bench: Bench) -> None:
    pipe, base = bench.pipe(), bench.base()
    pipe.load_lora_weights({"lora_foo": torch.tensor(2.0), "lora_bar": torch.tensor(3.0)})
    assert alike(bench.draw(pipe), base)


@adapter_case
def adapter_scale_as_set(bench: Bench) -> None:
    pipe = bench.pipe()
    adapted = adapt(pipe)
    scaled = bench.draw(pipe, joint_attention_kwargs={"scale": 0.5})
    path = store(bench, pipe, adapted)
    pipe.set_adapters("default", 0.5)
    assert alike(bench.draw(pipe), scaled)
    other = bench.pipe()
    other.load_lora_weights(path)
    assert alike(bench.draw(other, joint_attention_kwargs={"scale": 0.5}), scaled)


def with_metadata(bench: Bench, alpha: int) -> tuple[Any, dict[str, Any]]:
    pipe = bench.pipe()
    adapted = adapt(pipe, lora_alpha=alpha)
    given = {
        f"{part}_lora_adapter_metadata": each.peft_config["default"].to_dict()
        for part, each in adapted.items()
    }
    first = bench.draw(pipe)
    store(bench, pipe, adapted, **given)
    pipe.unload_lora_weights()
    *_, metadata = pipe.lora_state_dict(bench.folder, return_lora_metadata=True)
    pipe.load_lora_weights(bench.folder)
    assert alike(bench.draw(pipe), first)
    return pipe, metadata


def metadata_case(alpha: int) -> Iterator[Callable[[Bench], None]]:
    def read(bench: Bench) -> None:
        _, metadata = with_metadata(bench, alpha)
        assert metadata["transformer.lora_alpha"] == alpha

    def used(bench: Bench) -> None:
        pipe, _ = with_metadata(bench, alpha)
        assert pipe.transformer.peft_config["default_0"].lora_alpha == alpha

    for run in (read, used):
        run.__name__ = f"adapter_metadata_{run.__name__}_{alpha}"
        yield run


for alpha in (4, 8, 16):
    for run in metadata_case(alpha):
        adapter_case(run)


@adapter_case
def adapter_again(bench: Bench) -> None:
    pipe = bench.pipe()
    for _ in range(2):
        adapt(pipe)
        bench.draw(pipe)
        pipe.unload_lora_weights()


@adapter_case
def adapter_deleted_and_loaded(bench: Bench) -> None:
    pipe, base = bench.pipe(), bench.base()
    first = adapt(pipe)
    picture = bench.draw(pipe)
    path = store(bench, pipe, first)
    pipe.delete_adapters("default")
    assert alike(bench.draw(pipe), base)
    pipe.load_lora_weights(path)
    assert alike(bench.draw(pipe), picture)


@adapter_case
def adapter_with_alpha(bench: Bench) -> None:
    from safetensors.torch import load_file

    pipe = bench.pipe()
    path = store(bench, pipe, adapt(pipe, "transformer"))
    first, state = bench.draw(pipe), load_file(path)
    keys = [name for name in state if "to_k" in name and "lora_A" in name]
    state |= {f"{name}.alpha": torch.tensor(50.0) for name in keys}
    pipe.unload_lora_weights()
    pipe.load_lora_weights(state)
    assert differ(bench.draw(pipe), first)


def with_another_layer(bench: Bench, *, first: bool) -> None:
    """Two adapters, one of which has a layer that the other one lacks."""
    from safetensors.torch import load_file

    pipe, base = bench.pipe(), bench.base()
    path = store(bench, pipe, adapt(pipe, "transformer", target_modules=[*DENOISER, "x_embedder"]))
    alone = bench.draw(pipe)
    pipe.unload_lora_weights()
    whole = load_file(path)
    fewer = {name: tensor for name, tensor in whole.items() if "x_embedder" not in name}
    for name, state in zip(
        ("one", "two"), (whole, fewer) if first else (fewer, whole), strict=True
    ):
        pipe.load_lora_weights(dict(state), adapter_name=name)
    pipe.set_adapters(["one", "two"])
    both = bench.draw(pipe)
    assert differ(alone, base)
    assert differ(both, base)
    assert (both - alone).abs().max() > 1e-5


@adapter_case
def adapter_with_a_layer_less(bench: Bench) -> None:
    with_another_layer(bench, first=True)


@adapter_case
def adapter_with_a_layer_more(bench: Bench) -> None:
    with_another_layer(bench, first=False)


# --- every case -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoders() -> Parts:
    import diffusers

    untyped: Any = diffusers
    folder = fresco_trt.pretrained("flux-tiny")
    pipe = untyped.FluxPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    return {
        name: each for name, each in pipe.components.items() if "text" in name or "token" in name
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_a_case_of_diffusers_holds_with_the_same_pictures(
    name: str, encoders: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if CASES[name].adapters:
        pytest.importorskip("peft")
        monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)
    benches = [
        Bench(encoders=encoders, folder=tmp_path / str(enabled), enabled=enabled)
        for enabled in (False, True)
    ]
    for bench in benches:
        bench.folder.mkdir()
        if bench.enabled and name in REFUSED:
            with pytest.raises(IncompatibleOptions, match=REFUSED[name]):
                CASES[name].run(bench)
            return
        CASES[name].run(bench)
    plain, ours = (bench.drawn for bench in benches)
    assert len(plain) == len(ours)
    assert all(torch.equal(one, other) for one, other in zip(plain, ours, strict=True))


def test_as_many_cases_hold_as_have_to() -> None:
    assert len(CASES) == 65
    assert len(CASES.keys() - REFUSED.keys()) >= 60
