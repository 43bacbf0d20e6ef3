"""What is larger than any model is refused by what a manifest says, and no file is read for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fresco_trt.bundle import folder as bundle_folder
from fresco_trt.cli.main import main
from fresco_trt.errors import ManifestInvalid
from fresco_trt.models.registry import model_facts
from fresco_trt.pipelines.loading import opened
from fresco_trt.pipelines.sizes import check_sizes, most_of_engines, most_of_parts
from tests.hostile import sizes

FLOAT32 = 4
PARTS = {
    "flux-tiny": 2_000_000,
    # T5-XXL's encoder, CLIP-L's and the decoder, as published.
    "flux": 4_762_310_656 + 123_060_480 + 83_819_683,
}


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of a bundle is hashed."""

    def digests(*_: Any) -> Any:
        raise AssertionError("a file was read")

    monkeypatch.setattr(bundle_folder, "digests", digests)


@pytest.mark.parametrize("attack", sizes.ATTACKS.values(), ids=sizes.ATTACKS)
@pytest.mark.usefixtures("unread")
def test_what_is_too_large_is_refused_before_it_is_read(
    attack: Callable[[Path], None],
    eager_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(eager_bundle, tmp_path / "b", copy_function=os.link)
    attack(folder)
    with pytest.raises(ManifestInvalid, match=r"at most \d+( bytes)?\. Fix: ") as caught:
        opened(folder)
    assert len(str(caught.value)) < 600
    assert main(["inspect", str(folder)]) == 2
    assert "at most" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "parameters"), PARTS.items())
def test_what_a_model_has_in_float32_is_not_too_large(name: str, parameters: int) -> None:
    facts = model_facts(name)
    assert FLOAT32 * facts.parameters < most_of_engines(facts, 0) == most_of_engines(facts, 1)
    assert 3 * FLOAT32 * facts.parameters < most_of_engines(facts, 3)
    assert FLOAT32 * parameters < most_of_parts(facts) < sizes.BYTES


def test_a_model_that_is_not_known_is_taken_for_a_large_one() -> None:
    def of(size: int) -> Any:
        file = SimpleNamespace(path="engine.plan", bytes=size)
        named = SimpleNamespace(name="model-of-tomorrow")
        parts = SimpleNamespace(folder="pipeline")
        return cast("Any", SimpleNamespace(files=(file,), model=named, pipeline=parts))

    check_sizes(of(20 * 2**30))
    with pytest.raises(ManifestInvalid, match="at most"):
        check_sizes(of(2**40))
