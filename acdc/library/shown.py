"""Results that show themselves as the command line prints them, and in notebooks, light or dark."""

import base64
from html import escape

from acdc.errors import plural
from acdc.files.comparison import Comparison
from acdc.files.evaluation import Evaluation
from acdc.files.stability import Stability
from acdc.report import comparison, curves, evaluation, stability
from acdc.report.panels import of_comparison
from acdc.report.text import heading


def noted(text: str, notes: tuple[str, ...]) -> str:
    """A table, and notes below it."""
    lines = [note if note.startswith(("warning", "note")) else f"note: {note}" for note in notes]
    return text + "\n\n" + "\n".join(lines) if lines else text


class ShownEvaluation(Evaluation):
    """An evaluation, shown as `acdc evaluate` prints it; in a notebook its main numbers are a table."""

    def __repr__(self) -> str:
        return noted(evaluation.to_text(self), self.notes)

    def _repr_html_(self) -> str:
        rows = evaluation.ablations(self, rest="other edges")
        title = f"{self.task} in {self.model}: {self.edges:,} of {self.total:,} edges"
        prompts = plural(self.examples, f"{self.half.replace('_', '-')} prompt") + ", [95 % intervals]"
        return _table(f"{title}; {heading(self.metric)} on {prompts}", rows) + _more("everything measured", repr(self))


class ShownComparison(Comparison):
    """A comparison, shown as `acdc compare` prints it; in a notebook with its curves."""

    def __repr__(self) -> str:
        return comparison.to_text(self)

    def _repr_html_(self) -> str:
        shown = ""
        for name, data in curves.draw(of_comparison(self)).items():
            if name.endswith(".png"):  # white in a dark notebook, too, and without ids that could be another output's
                source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
                shown += f'<img style="max-width: min(100%, 50em)" src="{source}"/>'
        return shown + _more("tables", repr(self))


class ShownStability(Stability):
    """How stable a circuit is, shown as `acdc stability` prints it."""

    def __repr__(self) -> str:
        return stability.to_text(self)


def _table(caption: str, rows: list[list[str]]) -> str:
    """An HTML table with the colours of the notebook."""
    lines: list[str] = []
    for row in rows:
        tag = "td" if lines else "th"
        lines.append("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row))
    body = "".join(f'<tr style="white-space: nowrap">{line}</tr>' for line in lines)
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"


def _more(what: str, text: str) -> str:
    return f"\n<details><summary>{what}</summary><pre>{escape(text)}</pre></details>"
