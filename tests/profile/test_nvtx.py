"""Laws of the NVTX ranges: a stack of them, names registered, numbers in the payload."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fresco_trt.errors import ProfilerUnavailable
from fresco_trt.profile import nvtx, nvtx_ranges
from fresco_trt.profile.nvtx import DOMAIN, NvtxRanges, category_of
from fresco_trt.run.trace import NAMES, recording, span


class Domain:
    """What nvtx gives for a domain while a tool is attached, as far as it is used."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.ranges: list[tuple[str, int, int]] = []
        self.depth = 0

    def get_event_attributes(self, **given: Any) -> Any:
        self.made.append(given)
        return SimpleNamespace(**given)

    def push_range(self, attributes: Any) -> None:
        self.ranges.append((attributes.message, attributes.payload, self.depth))
        self.depth += 1

    def pop_range(self) -> None:
        self.depth -= 1


def drawn() -> None:
    with span("request"):
        for stage in (1, 2):
            with span("stage", stage):
                with span("step", stage), span("full"):
                    pass
                with span("transition", stage):
                    pass


def test_ranges_are_a_stack_with_numbers_in_the_payload() -> None:
    domain = Domain()
    with recording(NvtxRanges(domain)):
        drawn()
    assert domain.depth == 0
    assert domain.ranges == [
        ("request", 0, 0),
        ("stage", 1, 1),
        ("step", 1, 2),
        ("full", 0, 3),
        ("transition", 1, 2),
        ("stage", 2, 1),
        ("step", 2, 2),
        ("full", 0, 3),
        ("transition", 2, 2),
    ]


def test_what_a_range_is_made_of_is_made_once_and_names_hold_no_number() -> None:
    domain = Domain()
    with recording(NvtxRanges(domain)):
        drawn()
        once = len(domain.made)
        drawn()
    assert len(domain.made) == once
    assert {each["message"] for each in domain.made} <= set(NAMES)
    assert all(type(each["payload"]) is int for each in domain.made)


def test_an_error_pops_what_it_leaves() -> None:
    domain = Domain()
    ranges = NvtxRanges(domain)
    with pytest.raises(ValueError, match="why"), recording(ranges), span("stage", 1), span("full"):
        raise ValueError("why")
    assert len(domain.ranges) == 2
    assert domain.depth == 0


def test_categories_nest_as_spans_do() -> None:
    assert category_of("full") == "request/stage/step/full"
    assert category_of("transition") == "request/stage/transition"
    assert category_of("replay") == "request/stage/replay"
    assert category_of("text") == "request/text"
    assert len({category_of(name) for name in NAMES}) == len(NAMES)


def test_without_the_package_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvtx, "find_spec", lambda name: None)
    with pytest.raises(ProfilerUnavailable, match=r"fresco-trt\[profile\]"), nvtx_ranges():
        pytest.fail("the scope was entered")


def test_the_scope_marks_the_domain_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    domain = Domain()
    library = SimpleNamespace(get_domain=lambda name: asked.append(name) or domain)
    monkeypatch.setitem(sys.modules, "nvtx", library)
    monkeypatch.setattr(nvtx, "find_spec", lambda name: object())
    with nvtx_ranges():
        drawn()
    drawn()
    assert asked == [DOMAIN] == ["fresco"]
    assert len(domain.ranges) == 9


def test_the_package_itself_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("nvtx", reason="nvtx is not installed: the profile extra has it")
    # No tool is attached: its domain takes everything and does nothing.
    domain = library.get_domain(DOMAIN)
    assert {"get_event_attributes", "push_range", "pop_range"} <= set(dir(domain))
    # Another tool may be: the class of an enabled domain takes the same arguments.
    assert {"get_event_attributes", "push_range", "pop_range"} <= set(dir(library.Domain))
    with nvtx_ranges():
        drawn()
