"""The scene grammar: what a caption says is what the scene holds, and held-out pairs stay apart."""

from __future__ import annotations

import random
import re
from collections import Counter

from fresco_trt.bench.scenes.scene import COLOURS, OBJECTS, PATTERNS, is_held_out, random_scene

SCENES = [random_scene(random.Random(seed)) for seed in range(400)]


def test_a_caption_names_its_scene_and_nothing_else() -> None:
    names = "|".join(OBJECTS)
    form = re.compile(
        rf"an? ({names})(?: and an? ({names}))? on a ({'|'.join(PATTERNS)}) ({'|'.join(COLOURS)})"
        " background"
    )
    for scene in SCENES:
        said = form.fullmatch(scene.caption)
        assert said is not None, scene.caption
        assert [n for n in said.groups()[:2] if n] == [p.name for p in scene.placements]
        assert said.groups()[2:] == (scene.background.pattern, scene.background.colour)


def test_objects_stay_inside_the_frame_at_the_stated_sizes() -> None:
    for scene in SCENES:
        low, high = (0.5, 0.75) if len(scene.placements) == 1 else (0.5, 0.5)
        for place in scene.placements:
            assert low <= place.side <= high
            assert place.side / 2 <= place.x <= 1 - place.side / 2
            assert place.side / 2 <= place.y <= 1 - place.side / 2


def test_two_objects_never_overlap() -> None:
    for scene in SCENES:
        if len(scene.placements) == 2:
            a, b = scene.placements
            reach = (a.side + b.side) / 2 - 1e-9
            assert abs(a.x - b.x) >= reach or abs(a.y - b.y) >= reach


def test_training_never_shows_a_held_out_pair() -> None:
    for scene in SCENES:
        colour = scene.background.colour
        assert not any(is_held_out(place.name, colour) for place in scene.placements)


def test_held_out_scenes_always_show_one() -> None:
    for seed in range(50):
        scene = random_scene(random.Random(seed), held_out=True)
        colour = scene.background.colour
        assert any(is_held_out(place.name, colour) for place in scene.placements)


def test_each_object_is_kept_from_one_colour_and_each_colour_from_equally_many() -> None:
    pairs = [(o, c) for o in OBJECTS for c in COLOURS if is_held_out(o, c)]
    assert Counter(o for o, _ in pairs) == dict.fromkeys(OBJECTS, 1)
    assert set(Counter(c for _, c in pairs).values()) == {len(OBJECTS) // len(COLOURS)}


def test_a_caption_leaves_the_layout_open() -> None:
    single = [s.placements[0] for s in SCENES if len(s.placements) == 1]
    layouts = {(p.x, p.y, p.side, p.flipped) for p in single}
    assert len(layouts) > 80  # of 100: 5x5, 4x4 and 3x3 places, twice with flips
