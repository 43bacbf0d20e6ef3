"""An environment with what `pip install fresco-trt[serve]` brings, and nothing else.

Libraries import what else they find, so that a developer's environment starts more slowly than the
one that a server is deployed in.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def needed(extra: str) -> dict[str, Distribution]:
    """What this repository needs with that extra, by name, of what is installed here."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    found: dict[str, Distribution] = {}
    left = list(_names([*project["dependencies"], *project["optional-dependencies"][extra]]))
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another platform or version
            continue
        left += _names(found[name].requires or ())
    return found


def _names(requirements: Iterable[str]) -> Iterator[str]:
    """Of those that hold without an extra."""
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


def link_needed(extra: str, folder: Path) -> Path:
    """Fill a folder with links to the packages of :func:`needed`; a process that is started with -S
    and has it in PYTHONPATH, beside the repository, finds those and no other.
    """
    for each in needed(extra).values():
        for name in {file.parts[0] for file in each.files or ()} - {"..", "__pycache__"}:
            link = folder / name
            if not link.exists():
                link.symlink_to(str(each.locate_file(name)))
    return folder
