"""Links from a page to a file outside ``docs/``: the site gets a copy of that file.

On a code host such a link leads to the file itself. A site has only what lies in ``docs/``, so each
linked file is added to it, text files as plain text. A link to a file that does not exist is left
alone, and ``mkdocs build --strict`` then fails on it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

COPIES = "repository"
_OUTSIDE = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)")
_PICTURES = {".gif", ".jpg", ".jpeg", ".png", ".svg"}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links to the copies; called by mkdocs for every page."""
    docs = Path(config.docs_dir)
    folder = posixpath.dirname(page.file.src_uri)

    def linked(match: re.Match[str]) -> str:
        source = (docs / folder / match[2]).resolve()
        if not source.is_file() or source.is_relative_to(docs):
            return match[0]
        copy = _copied(source, docs.parent, config, files)
        return match[1] + posixpath.relpath(copy, folder or ".")

    return _OUTSIDE.sub(linked, markdown)


def _copied(source: Path, root: Path, config: MkDocsConfig, files: Files) -> str:
    """The place of ``source`` in the site's sources, where it is put if it is not there yet."""
    suffix = "" if source.suffix in _PICTURES else ".txt"
    place = f"{COPIES}/{source.relative_to(root).as_posix()}{suffix}"
    if files.get_file_from_path(place) is None:
        files.append(File.generated(config, place, abs_src_path=str(source)))
    return place
