"""Drawings of the objects in every style, fetched once from the packages that distribute them.

The packages are pinned by version and SHA-256. What scenes need of their 21 MB goes into one file
of 13, which is not tracked: training reads it wherever it runs, without a network and without an
SVG renderer, and no judge of pictures needs it.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fresco_trt.errors import ComponentFailed, ContentInvalid, DigestMismatch, FileMissing
from fresco_trt.files.atomic_file import replacing
from training.scenes.objects import OBJECTS, STYLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

SIDE = 256
"""Pixels a side of a stored drawing."""

SMALLEST = 32
"""Drawings are halved down to this side: the smallest object of a 64-pixel picture is 13."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An npm package of one style's drawings, and its archive's digest."""

    style: str
    name: str
    version: str
    sha256: str
    licence: str

    @property
    def archive(self) -> str:
        """File name that `npm pack` gives the archive."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES: tuple[Package, ...] = (
    Package(
        style="cartoon",
        name="@iconify-json/noto",
        version="1.2.9",
        sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        licence="Noto Emoji, Google Inc., Apache-2.0",
    ),
    Package(
        style="flat",
        name="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        licence="Fluent Emoji, Microsoft Corporation, MIT",
    ),
    Package(
        style="3d",
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        licence="Fluent Emoji, Microsoft Corporation, MIT",
    ),
    Package(
        style="sticker",
        name="@iconify-json/twemoji",
        version="1.2.5",
        sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        licence="Twemoji, Twitter, Inc. and other contributors, CC-BY-4.0",
    ),
)


class StoredDrawings:
    """Drawings of a file that `store_drawings` wrote; each is read when it is first asked for.

    Processes that it is sent to open the file themselves. Raises FileMissing for a path that is no
    file, ContentInvalid for a file of something else.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileMissing(
                given=f"no drawings at {path}",
                expected="the file that the command drawings writes",
                fix=f"run: python -m training.scenes drawings --out {path}",
            )
        try:
            self._files = zipfile.ZipFile(path)
            lost = set(entries()) - set(self._files.namelist())
        except (zipfile.BadZipFile, OSError) as error:
            raise _foreign(path, str(error)) from error
        if lost:
            raise _foreign(path, f"no {min(lost)} in it")
        self._path = path
        self.levels: Callable[[str, str], Sequence[Image.Image]] = lru_cache(None)(self._levels)

    def __reduce__(self) -> tuple[type[StoredDrawings], tuple[Path]]:
        return StoredDrawings, (self._path,)

    def _levels(self, name: str, style: str) -> Sequence[Image.Image]:
        return halvings(Image.open(io.BytesIO(self._files.read(entry(name, style)))))


def _foreign(path: Path, found: str) -> ContentInvalid:
    return ContentInvalid(
        given=f"{path}: {found}",
        expected="every object in every style",
        fix=f"remove it and run: python -m training.scenes drawings --out {path}",
    )


def halvings(drawing: Image.Image) -> tuple[Image.Image, ...]:
    """A square drawing and its halvings, the largest first."""
    levels = [drawing.convert("RGBA")]
    while levels[-1].width >= 2 * SMALLEST:
        half = levels[-1].width // 2
        levels.append(levels[-1].resize((half, half), Image.Resampling.BOX))
    return tuple(levels)


def entry(name: str, style: str) -> str:
    """Name of a drawing in the stored file."""
    return f"{style}/{name.replace(' ', '-')}.webp"


def entries() -> list[str]:
    """Names of all drawings in the stored file."""
    return [entry(name, style) for style in STYLES for name in OBJECTS]


def store_drawings(archives: Path, out: Path) -> None:
    """Draw every object in every style into one file.

    ``archives`` holds the packages' archives by the names that npm gives them. Raises FileMissing
    or DigestMismatch where one is not the pinned one.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as files:
        notice = "".join(f"{p.style}: {p.name} {p.version}: {p.licence}\n" for p in PACKAGES)
        # With the earliest date there is, the same drawings make the same file.
        files.writestr(zipfile.ZipInfo("NOTICE"), notice)
        for package in PACKAGES:
            for name, drawing in drawn(package, archives):
                written = io.BytesIO()
                drawing.save(written, "WEBP", lossless=True, quality=20, method=1)
                files.writestr(zipfile.ZipInfo(entry(name, package.style)), written.getvalue())


def drawn(package: Package, archives: Path) -> Iterator[tuple[str, Image.Image]]:
    """Each object and its drawing in the package's style."""
    path = archives / package.archive
    if not path.is_file():
        raise FileMissing(
            given=f"no {package.archive} in {archives}",
            expected=f"the archive of {package.name} {package.version}",
            fix=f"run there: npm pack {package.name}@{package.version}",
        )
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != package.sha256:
        raise DigestMismatch(
            given=f"{path} with SHA-256 {found}",
            expected=package.sha256,
            fix=f"fetch it again: npm pack {package.name}@{package.version}",
        )
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        draw = _Pictures(archive) if package.style == "3d" else _Vectors(archive)
        for name, points in OBJECTS.items():
            yield name, squared(draw(points))


class _Pictures:
    """Drawings that a package holds as pictures, named by code points."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive, self._names = archive, set(archive.getnames())

    def __call__(self, points: str) -> Image.Image:
        # Where an emoji has a text form too, some names end in the mark of the coloured one.
        names = [f"package/assets/{points}{mark}.webp" for mark in ("", "-fe0f")]
        data = _read(self._archive, next(name for name in names if name in self._names))
        return Image.open(io.BytesIO(data)).convert("RGBA")


class _Vectors:
    """Drawings that a package holds as SVG bodies, by names that it gives code points."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._chars: Mapping[str, str] = json.loads(_read(archive, "package/chars.json"))
        self._set: Any = json.loads(_read(archive, "package/icons.json"))

    def __call__(self, points: str) -> Image.Image:
        import resvg_py

        name = self._chars.get(points) or self._chars[f"{points}-fe0f"]
        name = self._set.get("aliases", {}).get(name, {"parent": name})["parent"]
        body, side = self._set["icons"][name]["body"], self._set["width"]
        # Twice the size, since what is empty around it is cut off before it is made smaller.
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}">{body}</svg>'
        png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    return b"" if member is None else member.read()


def squared(drawing: Image.Image) -> Image.Image:
    """A drawing without what is empty around it, in the middle of a square of SIDE pixels."""
    seen = drawing.getchannel("A").point(lambda value: 255 * (value > 16))
    cut = drawing.crop(seen.getbbox())
    scale = SIDE / max(cut.size)
    width, height = (max(1, round(scale * length)) for length in cut.size)
    square = Image.new("RGBA", (SIDE, SIDE))
    cut = cut.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(cut, ((SIDE - width) // 2, (SIDE - height) // 2))
    return square


def fetch_archives(folder: Path) -> None:
    """Fetch the packages' archives with npm, those that are not there.

    Raises ComponentFailed where there is no npm, or where it fails.
    """
    missing = [package for package in PACKAGES if not (folder / package.archive).is_file()]
    if not missing:
        return
    npm = shutil.which("npm")
    wanted = [f"{package.name}@{package.version}" for package in missing]
    fix = f"run in {folder}, or elsewhere and copy the archives: npm pack {' '.join(wanted)}"
    if npm is None:
        raise ComponentFailed(given="no npm on this machine", expected="npm, of Node.js", fix=fix)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        done = subprocess.run(
            [npm, "pack", *wanted], cwd=fresh, capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ComponentFailed(given=f"npm pack: {lines[-1]}", expected="archives", fix=fix)
        for archive in Path(fresh).glob("*.tgz"):
            archive.replace(folder / archive.name)
