"""The network for how pictures look: the published one, and nothing between equal pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fresco_trt.errors import BackendUnavailable, UnsupportedWeights
from fresco_trt.tune import perceptual
from fresco_trt.tune.perceptual import closeness, find_weights, load_network

SOCCER_BALL = 805


def test_it_knows_what_a_render_shows() -> None:
    pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the scenes")
    from fresco_trt.bench.plain import judged_scenes
    from fresco_trt.bench.scenes.pictures import pictures_of

    path = find_weights()
    if path is None:
        pytest.skip("the extra tune is not installed")
    network = load_network(path)
    scene = next(each for each in judged_scenes(60) if "soccer ball on a plain" in each.caption)
    picture = pictures_of([scene], 256)
    with torch.no_grad():
        assert network(picture).argmax().item() == SOCCER_BALL
    features = network.features(picture)
    assert closeness(features, features).item() == pytest.approx(1.0, abs=1e-5)
    steps = [0.02, 0.1, 0.5]
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    near = [closeness(network.features(picture + each * noise), features).item() for each in steps]
    assert near == sorted(near, reverse=True)
    assert near[0] < 1.0


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "weights.pth"
    for data in (None, b"other"):
        if data is not None:
            other.write_bytes(data)
        with pytest.raises(UnsupportedWeights, match=r"weights\.pth"):
            load_network(other)
    monkeypatch.setattr(perceptual, "PACKAGE", "no_such_package_at_all")
    assert find_weights() is None
    with pytest.raises(BackendUnavailable, match=r"fresco-trt\[tune\]"):
        perceptual.required_weights("--floor perceptual=0.9")
