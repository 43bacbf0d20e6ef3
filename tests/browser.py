"""Pages as a browser shows them, where one is installed: headless Chromium, without a network."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)
PATIENCE = 300  # seconds, against a hang; nothing is measured

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium-headless-shell"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """The document after the browser loaded it, and what the browser said of it."""

    document: str
    console: str


def shown(page: Path, folder: Path) -> Shown:
    """Open a page from the disk. ``folder`` is for the browser's own files."""
    assert CHROMIUM is not None
    options = ("--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom")
    hosts = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [CHROMIUM, *options, hosts, f"--user-data-dir={folder}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)
    lines = done.stderr.decode(errors="replace").splitlines()
    console = "\n".join(line for line in lines if ":CONSOLE" in line)
    return Shown(document=done.stdout.decode(), console=console)
