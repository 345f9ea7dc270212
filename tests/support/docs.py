"""What the documentation shows."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import ROOT

OWN_DATA = ROOT / "docs" / "own-data.md"


def blocks(language: str, path: Path = OWN_DATA) -> list[str]:
    """The fenced blocks of one language in a file, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
