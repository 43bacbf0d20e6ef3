"""The one spelling of config objects: an exact inverse, and what it refuses, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco_trt.errors import PlanError
from fresco_trt.plan.config import CacheConfig, PresetConfig, QuantConfig, TargetConfig
from fresco_trt.plan.spelling import Config

WORDS = st.text(min_size=1).filter(lambda text: text == text.strip())
HARD = st.text(alphabet="a,+=\\ ", min_size=1).filter(lambda text: text == text.strip())
TEXTS = WORDS | HARD
PATHS = TEXTS.filter(lambda text: "\0" not in text).map(Path)
TUPLES = st.lists(TEXTS, max_size=3).map(tuple)
COUNTS = st.none() | st.integers()
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)

CONFIGS: st.SearchStrategy[Config] = st.one_of(
    st.builds(
        CacheConfig,
        name=TEXTS,
        interval=COUNTS,
        warmup_steps=COUNTS,
        max_order=COUNTS,
        actions=TUPLES,
        site=st.none() | TEXTS,
        basis=st.none() | PATHS,
    ),
    st.builds(
        QuantConfig,
        precision=TEXTS,
        recipe=st.none() | TEXTS,
        keep=TUPLES,
        amax=st.none() | PATHS,
        force=st.booleans(),
    ),
    st.builds(TargetConfig, gpus=TUPLES, layout=TEXTS, stream_weights=st.booleans()),
    st.builds(
        PresetConfig,
        name=st.none() | TEXTS,
        delta=NUMBERS,
        shift=NUMBERS,
        text_tokens=st.lists(st.integers(), max_size=3).map(tuple),
    ),
)


@given(CONFIGS)
def test_the_spelling_is_an_exact_inverse(config: Config) -> None:
    again = type(config).parse(str(config))
    assert again == config
    assert str(again) == str(config)


@pytest.mark.parametrize(
    ("text", "config"),
    [
        (
            "hicache,interval=3,warmup_steps=2,max_order=1",
            CacheConfig(name="hicache", interval=3, warmup_steps=2, max_order=1),
        ),
        ("reuse,actions=FFBF+FBF", CacheConfig(name="reuse", actions=("FFBF", "FBF"))),
        ("none", CacheConfig()),
        (
            "fp8,recipe=fp8-attention,keep=*.ff.net.2+proj_out",
            QuantConfig(precision="fp8", recipe="fp8-attention", keep=("*.ff.net.2", "proj_out")),
        ),
        ("fp32", QuantConfig()),
        (
            "int8,amax=a=b/c+d.safetensors",
            QuantConfig(precision="int8", amax=Path("a=b/c+d.safetensors")),
        ),
        (
            "sm89+sm120,layout=profiles,stream_weights=true",
            TargetConfig(gpus=("sm89", "sm120"), layout="profiles", stream_weights=True),
        ),
        ("layout=profiles", TargetConfig(layout="profiles")),
        ("", TargetConfig()),
        ("balanced,delta=0.05,shift=9.5", PresetConfig(name="balanced", delta=0.05, shift=9.5)),
        ("delta=0.05", PresetConfig(delta=0.05)),
        ("fast,text_tokens=128+256", PresetConfig(name="fast", text_tokens=(128, 256))),
    ],
)
def test_the_spelling_is_the_documented_one(text: str, config: Config) -> None:
    assert str(config) == text
    assert type(config).parse(text) == config
    assert type(config).of(text) == config
    assert type(config).of(config) is config


def test_spaces_around_parts_are_no_part_of_them() -> None:
    assert TargetConfig.parse(" sm89 + sm120 , layout = profiles ") == TargetConfig(
        gpus=("sm89", "sm120"), layout="profiles"
    )


@pytest.mark.parametrize("kind", [CacheConfig, QuantConfig, TargetConfig, PresetConfig])
def test_the_example_that_messages_show_is_one(kind: type[Config]) -> None:
    assert str(kind.parse(str(kind.parse(kind.example)))) == str(kind.parse(kind.example))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (CacheConfig, "hicache,intervall=3", "key 'intervall' .* one of interval, .* interval\\?"),
        (CacheConfig, "hicache,zzz=3", "key 'zzz' in .* Fix: leave zzz out"),
        (CacheConfig, "hicache,name=svd", "key 'name'"),
        (CacheConfig, "hicache,interval=x", "interval=x in .* whole number.* like interval=3"),
        (CacheConfig, "hicache,interval=", "interval= in .* whole number"),
        (CacheConfig, "hicache,interval=2.5", "whole number"),
        (CacheConfig, "hicache,interval=3,interval=2", "interval twice .* every key once"),
        (CacheConfig, "hicache,svd", "the word 'svd' in .* one name, .* --cache hicache,interval"),
        (CacheConfig, "hicache,", "the word ''"),
        (CacheConfig, "interval=3", "no name in .* one name, then key=value"),
        (CacheConfig, "", "no name in --cache ''"),
        (CacheConfig, "reuse,actions=FB++FB", "actions=FB\\+\\+FB in .* words joined"),
        (CacheConfig, "svd,basis=", "basis= in .* a path"),
        (QuantConfig, "int8,force=yes", "force=yes in .* true or false"),
        (QuantConfig, "keep=a", "no precision"),
        (TargetConfig, "sm89,sm120", "the word 'sm120' .* sm89\\+sm120"),
        (PresetConfig, "balanced,delta=nan", "delta=nan .* a number"),
        (PresetConfig, "text_tokens=1+x", "tokens=1\\+x in .* whole numbers .*tokens=3\\+3"),
    ],
)
def test_a_wrong_spelling_says_what_was_expected(
    kind: type[Config], text: str, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        kind.parse(text)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CacheConfig, {"interval": "3"}),
        (CacheConfig, {"interval": True}),
        (CacheConfig, {"actions": "FBF"}),
        (CacheConfig, {"actions": ["FBF"]}),
        (CacheConfig, {"name": None}),
        (CacheConfig, {"name": " hicache"}),
        (CacheConfig, {"name": ""}),
        (CacheConfig, {"basis": "file"}),
        (QuantConfig, {"force": 1}),
        (TargetConfig, {"gpus": ("sm89", 89)}),
        (PresetConfig, {"delta": float("inf")}),
        (PresetConfig, {"text_tokens": ("128",)}),
        (PresetConfig, {"text_tokens": 128}),
    ],
)
def test_a_value_of_another_type_is_refused(kind: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=f"^{next(iter(fields))}=.* in {kind.__name__}; expected"):
        kind(**fields)
