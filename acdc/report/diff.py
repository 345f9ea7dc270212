"""What has changed between two circuits, as text."""

from __future__ import annotations

from acdc.files.diff import Diff


def to_text(diff: Diff) -> str:
    """A line for each edge that has changed, and how many there are."""
    counts = f"{len(diff.added)} added, {len(diff.removed)} removed, {len(diff.rescored)} re-scored"
    return "\n".join([*changes(diff), counts])


def changes(diff: Diff) -> list[str]:
    """A line for each edge: + is added, - removed, ~ re-scored."""
    moved = [f"~ {name}  {x:.4g} → {y:.4g}" for name, x, y in diff.rescored]
    return [*(f"+ {name}" for name in diff.added), *(f"- {name}" for name in diff.removed), *moved]
