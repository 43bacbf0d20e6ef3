"""What keeps an engine library from building or from running on this machine.

Two questions: TensorRT for RTX builds engines on a machine that has no GPU to run them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fresco_trt.backends.base import Backend, Missing


def missing_to_build(library: Backend) -> tuple[Missing, ...]:
    """What keeps a backend from building here; what it takes to run engines is its `check`.

    A library that is installed and names GPUs as targets builds for them on any machine.
    """
    facts = library.describe()
    builds_anywhere = facts.version is not None and bool(facts.targets)
    return () if builds_anywhere else library.check()


def missing_to_run(library: Backend) -> tuple[Missing, ...]:
    """What keeps engines of a backend, once they are built, from running here."""
    return tuple(each for each in library.check() if not each.only_to_build)


def in_words(missing: Iterable[Missing]) -> str:
    """What is missing, each with what adds it, in one line."""
    return "; ".join(f"{each.what} ({each.fix})" for each in missing)
