"""A drawing of boxes, curves and texts, written as SVG, PNG, PDF or TikZ.

PNG and PDF are drawn by matplotlib. SVG is not: every run writes one, and importing matplotlib takes 0.6 seconds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from acdc.io.terminal import printable
from acdc.report.mpl import own_settings, saved

Point = tuple[float, float]
FONTS = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML
DASHES = (6.0, 4.0)
TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    **{character: rf"\{character}" for character in "{}$&#_%"},
}  # fmt: skip


@dataclass(frozen=True)
class Rect:
    """A box. x and y are its left and top; y grows downwards."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    line: str = ""
    radius: float = 0.0


@dataclass(frozen=True)
class Text:
    """A line of text. y is its baseline."""

    x: float
    y: float
    text: str
    size: float
    colour: str
    anchor: str = "start"  # or "middle": where x is


@dataclass(frozen=True)
class Curve:
    """Cubic Bézier curves (the start, then three points per curve) with a filled triangle at the end."""

    points: list[Point]
    arrow: list[Point]
    colour: str
    opacity: float
    width: float
    dashed: bool = False


Mark = Rect | Text | Curve


@dataclass(frozen=True)
class Group:
    """Marks that belong together."""

    kind: str  # "edge", "node", …
    name: str = ""
    tip: str = ""  # what a browser shows when one points there
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True)
class Drawing:
    """A drawing: the area whose left and top are at (x, y). `scale` is the size of its points on paper."""

    groups: list[Group]
    x: float
    y: float
    width: float
    height: float
    scale: float = 1.0

    def svg(self) -> str:
        """The drawing as SVG text."""
        size = f'width="{_short(self.scale * self.width)}pt" height="{_short(self.scale * self.height)}pt"'
        view = " ".join(map(_short, (self.x, self.y, self.width, self.height)))
        lines = [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="{view}" font-family="{FONTS}">',
            _svg(Rect(self.x, self.y, self.width, self.height, "white")),
        ]
        for group in self.groups:
            name = f' id="{_clean(group.name)}"' if group.name else ""
            lines.append(f'<g class="{group.kind}"{name}>')
            if group.tip:
                lines.append(f"<title>{_clean(group.tip)}</title>")
            lines += [_svg(mark) for mark in group.marks]
            lines.append("</g>")
        return "\n".join([*lines, "</svg>", ""])

    def png(self, dpi: float) -> bytes:
        """The drawing as a bitmap."""
        return self._matplotlib(format="png", dpi=dpi, metadata={"Software": None})

    def pdf(self) -> bytes:
        """The drawing as one page of PDF, with its fonts and without a date."""
        return self._matplotlib(format="pdf", metadata={"CreationDate": None})

    def tikz(self) -> str:
        """The drawing as a TikZ picture, to be read with `\\input`. It needs `\\usepackage{tikz}`, and no library of
        TikZ; one unit is a point of the drawing. A comment before each edge names it."""
        unit = f"{self.scale:.4g}pt"
        lines = [rf"\begin{{tikzpicture}}[x={unit}, y=-{unit}, inner sep=0pt]"]
        lines.append(rf"\useasboundingbox {_rectangle(self)};")
        marks = [mark for group in self.groups for mark in group.marks]
        for colour in sorted({colour for mark in marks for colour in _colours(mark)}):
            lines.append(rf"\definecolor{{{_colour_name(colour)}}}{{HTML}}{{{colour[1:].upper()}}}")
        for group in self.groups:
            if group.tip:
                lines.append(f"% {_line(group.tip)}")
            lines += [_tikz(mark, self.scale) for mark in group.marks]
        return "\n".join([*lines, r"\end{tikzpicture}", ""])

    def _matplotlib(self, **options: Any) -> bytes:
        with own_settings({"pdf.fonttype": 42}):
            from matplotlib.figure import Figure  # not pyplot, which looks for a screen
            from matplotlib.transforms import Affine2D

            inch = self.scale / 72
            figure = Figure(figsize=(inch * self.width, inch * self.height))
            to_inches = Affine2D().translate(-self.x, -self.y - self.height).scale(inch, -inch)
            for group in self.groups:
                for mark in group.marks:
                    for artist in _artists(mark, self.scale):
                        artist.set_transform(to_inches + figure.dpi_scale_trans)
                        figure.add_artist(artist)
            return saved(figure, **options)


def _svg(mark: Mark) -> str:
    match mark:
        case Rect():
            stroke = f' stroke="{mark.line}"' if mark.line else ""
            radius = f' rx="{mark.radius:g}"' if mark.radius else ""
            place = f'x="{_short(mark.x)}" y="{_short(mark.y)}" width="{_short(mark.width)}"'
            return f'<rect {place} height="{_short(mark.height)}" fill="{mark.fill}"{stroke}{radius}/>'
        case Text():
            anchor = f' text-anchor="{mark.anchor}"' if mark.anchor != "start" else ""
            place = f'x="{_short(mark.x)}" y="{_short(mark.y)}" font-size="{mark.size:g}" fill="{mark.colour}"'
            return f"<text {place}{anchor}>{_clean(mark.text)}</text>"
        case Curve():
            dashes = f' stroke-dasharray="{DASHES[0]:g} {DASHES[1]:g}"' if mark.dashed else ""
            style = f'stroke="{mark.colour}" stroke-opacity="{mark.opacity:.2f}" stroke-width="{mark.width:.2f}"'
            line = f'<path d="{curve_path(mark.points)}" fill="none" {style}{dashes}/>'
            corners = " ".join(map(_at, mark.arrow))
            return f'{line}\n<polygon points="{corners}" fill="{mark.colour}" fill-opacity="{mark.opacity:.2f}"/>'


def curve_path(points: Sequence[Point]) -> str:
    """Cubic Bézier curves as the `d` of an SVG path; straight ones, along an axis, are lines."""
    parts = [f"M{_at(points[0])}"]
    for i in range(0, len(points) - 1, 3):
        curve = points[i : i + 4]
        if any(len({point[axis] for point in curve}) == 1 for axis in (0, 1)):
            if parts[-1].startswith("L"):
                parts.pop()  # goes on in the same direction
            parts.append(f"L{_at(curve[3])}")
        else:
            parts.append(f"C{' '.join(map(_at, curve[1:]))}")
    return "".join(parts)


def _artists(mark: Mark, scale: float) -> list[Any]:
    """A mark for matplotlib, which scales places but no lines and letters."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
    from matplotlib.path import Path as Bezier
    from matplotlib.text import Text as Letters

    match mark:
        case Rect():
            shape = f"round,pad=0,rounding_size={mark.radius}" if mark.radius else "square,pad=0"
            box = FancyBboxPatch((mark.x, mark.y), mark.width, mark.height, boxstyle=shape, facecolor=mark.fill)
            box.set(edgecolor=mark.line or "none", linewidth=scale)
            return [box]
        case Text():
            file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")  # without a search for fonts
            letters = Letters(mark.x, mark.y, _printable(mark.text), va="baseline", parse_math=False)
            letters.set(color=mark.colour, ha="left" if mark.anchor == "start" else "center")
            letters.set(font=FontProperties(fname=file, size=scale * mark.size))
            return [letters]
        case Curve():
            dashes = (0, tuple(scale * x for x in DASHES)) if mark.dashed else "solid"
            line = {"edgecolor": mark.colour, "alpha": mark.opacity, "linewidth": scale * mark.width}
            path = Bezier(mark.points, [Bezier.MOVETO] + [Bezier.CURVE4] * (len(mark.points) - 1))
            arrow = Polygon(mark.arrow, facecolor=mark.colour, edgecolor="none", alpha=mark.opacity)
            return [PathPatch(path, fill=False, linestyle=dashes, capstyle="butt", **line), arrow]


def _colours(mark: Mark) -> set[str]:
    used = {mark.fill, mark.line} if isinstance(mark, Rect) else {mark.colour}
    return {colour for colour in used if colour.startswith("#")}


def _colour_name(colour: str) -> str:
    return colour.replace("#", "acdc")


def _tikz(mark: Mark, scale: float) -> str:
    match mark:
        case Rect():
            line = f", draw={_colour_name(mark.line)}, line width={scale:.2f}pt" if mark.line else ""
            corners = f", rounded corners={scale * mark.radius:.4g}pt" if mark.radius else ""
            return rf"\path[fill={_colour_name(mark.fill)}{line}{corners}] {_rectangle(mark)};"
        case Text():
            size = f"{scale * mark.size:.4g}"
            font = rf"\sffamily\fontsize{{{size}}}{{{size}}}\selectfont"
            anchor = "base" if mark.anchor == "middle" else "base west"
            text = "".join(TEX.get(character, character) for character in _line(mark.text))
            style = f"anchor={anchor}, text={_colour_name(mark.colour)}, font={font}"
            return rf"\node[{style}] at {_coordinate((mark.x, mark.y))} {{{text}}};"
        case Curve():
            style = f"{_colour_name(mark.colour)}, opacity={mark.opacity:.2f}"
            on, off = (scale * length for length in DASHES)
            dashes = f", dash pattern=on {on:.4g}pt off {off:.4g}pt" if mark.dashed else ""
            path = _coordinate(mark.points[0])
            for i in range(1, len(mark.points), 3):
                first, second, end = map(_coordinate, mark.points[i : i + 3])
                path += f" .. controls {first} and {second} .. {end}"
            line = rf"\draw[{style}, line width={scale * mark.width:.2f}pt{dashes}] {path};"
            return line + "\n" + rf"\fill[{style}] {' -- '.join(map(_coordinate, mark.arrow))} -- cycle;"


def _rectangle(of: Rect | Drawing) -> str:
    return f"{_coordinate((of.x, of.y))} rectangle {_coordinate((of.x + of.width, of.y + of.height))}"


def _coordinate(point: Point) -> str:
    return f"({point[0]:.2f},{point[1]:.2f})"


def _line(text: str) -> str:
    return " ".join(printable(text).splitlines())


def _at(point: Point) -> str:
    return f"{_short(point[0])},{_short(point[1])}"


def _short(x: float) -> str:
    return f"{x:.2f}".rstrip("0").rstrip(".")


def _printable(text: str) -> str:
    """Text on one line, without characters that XML forbids."""
    return " ".join(FORBIDDEN.sub("\ufffd", text).splitlines())


def _clean(text: str) -> str:
    return escape(_printable(text))
