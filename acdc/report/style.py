"""How a picture looks: its colours, the direction of its edges, and their widths by score."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import cycle

from acdc.files.published import Published
from acdc.report.canvas import Point
from acdc.report.positions import Prompted

# Okabe and Ito's colours, which can be told apart with every kind of colour blindness.
COLOURS = {"q": "#D55E00", "k": "#0072B2", "v": "#009E73"}
INK, GREY, PALE, SAND = "#333333", "#8A8A8A", "#F0F0F0", "#F2E9C9"
MOVE = "#AA3377"  # arcs of attention
SHADE = "#F6F6F6"  # columns of a circuit by span
# Paul Tol's light scheme, made to stand behind dark text and to be told apart by the colour-blind, too. In this order
# the first seven, which IOI has, differ most (CIEDE2000 at least 8 with red-green blindness).
TINTS = ("#77AADD", "#EE8866", "#FFAABB", "#99DDFF", "#AAAA00", "#EEDD88", "#44BB99", "#BBCC33")
THIN, THICK = 1, 5  # points
FAINT = 0.4  # opacity of the weakest edge
LETTERS = 12.0  # size of the nodes' names, in points where a picture isn't scaled
DIRECTIONS = ("up", "down", "right", "left")  # of the logits, from the input
SCORE = "score"  # what the numbers of edges are,
FREQUENCY = "frequency: the share of reruns with the edge"  # those of a core of `acdc stability`


@dataclass(frozen=True)
class PictureStyle:
    """How a picture is drawn."""

    width: float | None = None  # inches; None for the layout's own. Some 50 edges fit a paper's column of 3.3 inches
    direction: str = "up"  # one of DIRECTIONS
    scores: bool = False  # write scores beside their edges
    header: bool = True  # title, counts and legend
    legend: bool = True  # in the header
    title: str | None = None  # instead of the circuit's own
    font_size: float | None = None  # of the nodes' names, in points; the picture grows with it
    measure: str = SCORE  # what widths show
    published: Published | None = None  # its classes colour the nodes; a node in two has the colour of the first
    prompted: Prompted = field(default_factory=Prompted)  # what is shown of the prompts beside a circuit by span

    @property
    def sideways(self) -> bool:
        """Whether layers stand side by side."""
        return self.direction in ("left", "right")

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Class → nodes."""
        return self.published.classes if self.published else {}

    @property
    def tints(self) -> dict[str, str]:
        """Class → colour."""
        return dict(zip(self.classes, cycle(TINTS), strict=False))

    def fill(self, node: str) -> str | None:
        """The colour of a node; None for one without a class."""
        return next((tint for name, tint in self.tints.items() if node in self.classes[name]), None)

    def turn(self, point: Point) -> Point:
        """Where a point of the layout is in the picture."""
        x, y = point
        return {"up": (x, -y), "down": (x, y), "right": (y, x), "left": (-y, x)}[self.direction]


PLAIN = PictureStyle()


@dataclass(frozen=True)
class Scale:
    """From the score of an edge to its line. Without scores all lines are of middle width."""

    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, scores: Iterable[float]) -> Scale:
        """The scale of some scores; NaN and infinity don't count."""
        sizes = [abs(score) for score in scores if math.isfinite(score)]
        return cls(min(sizes), max(sizes)) if sizes else cls()

    @property
    def marks(self) -> list[float]:
        """Scores for the legend: lowest, of middle width, highest."""
        middle = ((math.sqrt(self.low) + math.sqrt(self.high)) / 2) ** 2
        return [self.low, middle, self.high] if self.high > self.low else [self.low]

    def weight(self, score: float) -> float:
        """From 0 (weakest) to 1, linear in the root of |score|: scores span decades, and weak edges should be seen."""
        if not math.isfinite(score) or self.high <= self.low:
            return 0.5
        low = math.sqrt(self.low)
        return (math.sqrt(abs(score)) - low) / (math.sqrt(self.high) - low)

    def width(self, score: float) -> float:
        """The width of the line, in points."""
        return THIN + (THICK - THIN) * self.weight(score)

    def opacity(self, score: float) -> float:
        """The opacity of the line: a weaker edge is fainter."""
        return FAINT + (1 - FAINT) * self.weight(score)
