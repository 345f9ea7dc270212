"""A drawing as a TikZ picture. It needs `\\usepackage{tikz}`, and no library of TikZ; one unit is a point of the
drawing, y grows downwards."""

from acdc.io.terminal import printable
from acdc.report.canvas import DASHES, Curve, Drawing, Mark, Point, Rect, Text

ESCAPES = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    **{character: rf"\{character}" for character in "{}$&#_%"},
}  # fmt: skip


def to_tikz(drawing: Drawing) -> str:
    """Return the picture, to be read with `\\input`. A comment before each edge names it."""
    unit = f"{drawing.scale:.4g}pt"
    lines = [rf"\begin{{tikzpicture}}[x={unit}, y=-{unit}, inner sep=0pt]"]
    lines.append(rf"\useasboundingbox {_rectangle(drawing)};")
    marks = [mark for group in drawing.groups for mark in group.marks]
    for colour in sorted({colour for mark in marks for colour in _colours(mark)}):
        lines.append(rf"\definecolor{{{_name(colour)}}}{{HTML}}{{{colour[1:].upper()}}}")
    for group in drawing.groups:
        if group.tip:
            lines.append(f"% {_line(group.tip)}")
        lines += [_tikz(mark, drawing.scale) for mark in group.marks]
    return "\n".join([*lines, r"\end{tikzpicture}", ""])


def _colours(mark: Mark) -> set[str]:
    used = {mark.fill, mark.line} if isinstance(mark, Rect) else {mark.colour}
    return {colour for colour in used if colour.startswith("#")}


def _name(colour: str) -> str:
    return colour.replace("#", "acdc")


def _tikz(mark: Mark, scale: float) -> str:
    match mark:
        case Rect():
            line = f", draw={_name(mark.line)}, line width={scale:.2f}pt" if mark.line else ""
            corners = f", rounded corners={scale * mark.radius:.4g}pt" if mark.radius else ""
            return rf"\path[fill={_name(mark.fill)}{line}{corners}] {_rectangle(mark)};"
        case Text():
            size = f"{scale * mark.size:.4g}"
            font = rf"\sffamily\fontsize{{{size}}}{{{size}}}\selectfont"
            anchor = "base" if mark.anchor == "middle" else "base west"
            text = "".join(ESCAPES.get(character, character) for character in _line(mark.text))
            style = f"anchor={anchor}, text={_name(mark.colour)}, font={font}"
            return rf"\node[{style}] at {_at((mark.x, mark.y))} {{{text}}};"
        case Curve():
            style = f"{_name(mark.colour)}, opacity={mark.opacity:.2f}"
            on, off = (scale * length for length in DASHES)
            dashes = f", dash pattern=on {on:.4g}pt off {off:.4g}pt" if mark.dashed else ""
            path = _at(mark.points[0])
            for i in range(1, len(mark.points), 3):
                first, second, end = map(_at, mark.points[i : i + 3])
                path += f" .. controls {first} and {second} .. {end}"
            line = rf"\draw[{style}, line width={scale * mark.width:.2f}pt{dashes}] {path};"
            return line + "\n" + rf"\fill[{style}] {' -- '.join(map(_at, mark.arrow))} -- cycle;"


def _rectangle(of: Rect | Drawing) -> str:
    return f"{_at((of.x, of.y))} rectangle {_at((of.x + of.width, of.y + of.height))}"


def _at(point: Point) -> str:
    return f"({point[0]:.2f},{point[1]:.2f})"


def _line(text: str) -> str:
    return " ".join(printable(text).splitlines())
