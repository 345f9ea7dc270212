"""The layout of a circuit by span: a column for each span, in the order of the prompts, over the prompt's tokens.

A node stands in each column where it reads or writes, and an edge is drawn in its own column, as `layout` does it; rows
are the same in all columns. A head that reads keys or values in one column and writes in another has an arc between
the two, over its row: the move that its attention makes. Spans without an edge share narrow columns.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

import numpy as np

from acdc.files.circuit import CircuitFile
from acdc.graph.circuit import Circuit
from acdc.graph.graph import AT, Array
from acdc.report.layout import (
    ARROW,
    CROWD,
    Box,
    End,
    Layout,
    Point,
    Rows,
    Spot,
    across,
    along,
    kinds_of,
    rows_of,
    size_of,
    straight,
)

if TYPE_CHECKING:  # it loads torch
    from acdc.evaluation.explain import Explanation

SIZES = {"head": (42.0, 36.0), "mlp": (42.0, 24.0), "end": (48.0, 26.0)}  # of boxes, as UPRIGHT
PADDING = 10.0  # in columns and between them
AXIS = 16.0  # from the boxes down to the tokens
LINE = 14.0  # height of a line of tokens
LETTER = 6.4  # width of a letter of it
FOLDED = 6  # spans without edges in a column, at most
WRAP = 12  # letters in a line of tokens where the column isn't wider
LINES = 3  # of tokens, at most
LONGEST = 24  # letters of a span's name
ANSWERS = 3  # shown
TRACK = 7.0  # between two arcs, at most
TRACKS = 84.0  # for all arcs of a row, at most
TURN = 10.0  # radius of an arc's corner
LOW = ARROW + TURN + 2  # the height of the lowest arc


@dataclass(frozen=True)
class Prompted:
    """What a picture shows of the prompts."""

    texts: Mapping[str, str] = field(default_factory=dict)  # of the first prompt, by span
    answer: str = ""  # to it, or some of those that are right
    # Head → Float[to from]: the share of its attention at a span that goes to another; means over the tokens of `to`
    # and the prompts. A head without it has arcs of one opacity.
    attention: Mapping[str, Array] = field(default_factory=dict)
    causal: bool = True  # no head looks ahead

    @classmethod
    def of(cls, file: CircuitFile, explanation: Explanation | None = None) -> Prompted:
        """What is known of the prompts of a circuit by span."""
        causal = file.model.family != "acdc"  # the format of compiled models, some of which look ahead
        if explanation is None or not file.spans:
            return cls(causal=causal)
        first = explanation.examples[0]
        texts = dict.fromkeys(file.spans, "")
        for span, token in zip(first.spans, first.clean, strict=True):
            texts[file.spans[span]] += token
        placed = [np.array(example.spans)[:, None] == np.arange(len(file.spans)) for example in explanation.examples]
        attention = {}
        for head, patterns in explanation.attention.items():
            by_span = []
            for at, pattern in zip(placed, patterns, strict=False):  # fewer patterns where they are large
                by_span.append(at.T @ pattern @ at / np.maximum(at.sum(0), 1)[:, None])
            attention[head] = np.mean(by_span, 0)
        answers = [answer.strip() for answer in first.correct[:ANSWERS]]
        return cls(texts, ", ".join(answers + ["…"] * (len(first.correct) > ANSWERS)), attention, causal)


@dataclass(frozen=True)
class Column:
    """One span, or several without edges. x is its middle."""

    spans: tuple[str, ...]
    x: float
    width: float
    lines: tuple[str, ...]  # names and tokens
    folded: bool  # whether it has no edges


@dataclass(frozen=True)
class Move:
    """What a head's attention moves: read as key or value at one span, written at another."""

    head: str
    start: str
    end: str
    attention: float | None
    path: list[Point]


@dataclass(frozen=True)
class ByPosition(Layout):
    """A layout by columns. Nodes and edges have their span in their keys: `a0.h3 @ S2`, `a0.h3->m0 @ S2`."""

    columns: list[Column]
    moves: list[Move]
    axis: float  # y of the middle of the first line of tokens
    answer: Point | None  # the middle of the answer, if there is one


def moves_of(circuit: Circuit, causal: bool = True) -> Iterator[tuple[str, str, str]]:
    """Head, the span at which its keys or values are read, and another one at which it writes."""
    g = circuit.graph
    read: Array = np.any(circuit.kept, 0)
    written: Array = np.any(circuit.kept, 1)
    for s, sender in enumerate(g.senders):
        if sender.kind == "head":
            moved = read[list(g.own_receivers[s][1:])].any(0)
            for a, b in product(np.flatnonzero(moved).tolist(), np.flatnonzero(written[s]).tolist()):
                if a < b or (a > b and not causal):
                    yield sender.name, circuit.spans[a], circuit.spans[b]


def lay_out_by_position(circuit: Circuit, prompted: Prompted, sideways: bool = False) -> ByPosition:
    """Lay out a circuit with spans; `sideways` for a picture that swaps x and y."""
    g = circuit.graph
    spans = circuit.spans
    nodes, layers = rows_of(circuit)
    kind_of = kinds_of(g)
    kinds = {node + AT + span: kind_of[node] for row in nodes for node in row for span in spans}
    sizes = {key: size_of(key.partition(AT)[0], kind, sideways, SIZES) for key, kind in kinds.items()}
    edges: dict[str, list[End]] = {spans[-1]: []}  # by span; the logits are always there
    for s, r, i in np.argwhere(circuit.kept).tolist():
        ends = [node + AT + spans[i] for node in (g.senders[s].name, g.receivers[r].node)]
        edges.setdefault(spans[i], []).append((g.part_name((s, r, i), spans), ends[0], ends[1], g.receivers[r].kind))

    rows: Rows = [[] for _ in nodes]
    chains: dict[str, list[Spot]] = {}
    x: dict[Spot, float] = {}
    columns: list[Column] = []
    for group in _groups(spans, edges):
        own = edges.get(group[0], [])
        touched = {end for edge in own for end in edge[1:3]} | {f"logits{AT}{spans[-1]}"}
        found = [[key for key in (node + AT + group[0] for node in row) if key in touched] for row in nodes]
        more, places = across(found, kinds, sizes, own, circuit.size > CROWD, narrow=True)
        halves = {spot: sizes[spot[1]][0] / 2 if isinstance(spot[1], str) else 0.0 for spot in places}
        low = min((place - halves[spot] for spot, place in places.items()), default=0.0)
        high = max((place + halves[spot] for spot, place in places.items()), default=0.0)
        lines = _lines(group, prompted, 0 if sideways else high - low)
        least = LINE * len(lines) if sideways else LETTER * max(map(_letters, lines))
        width = max(high - low + 2 * PADDING, least)
        left = columns[-1].x + columns[-1].width / 2 + PADDING if columns else 0.0
        columns.append(Column(group, left + width / 2, width, lines, group[0] not in edges))
        shift = columns[-1].x - (low + high) / 2
        x |= {spot: place + shift for spot, place in places.items()}
        chains |= more
        rows = [row + keys for row, keys in zip(rows, found, strict=True)]

    tracks, room = _tracks(circuit, prompted.causal, rows, x)
    every = [edge for some in edges.values() for edge in some]
    bands, boxes, paths = along(rows, kinds, sizes, every, chains, x, True, room)
    moves = []
    for (head, a, b), height in tracks.items():
        arc = _arc(boxes[head + AT + a], boxes[head + AT + b], height)
        shares = prompted.attention.get(head)
        share = None if shares is None else float(shares[spans.index(b), spans.index(a)])
        moves.append(Move(head, a, b, share, arc))
    labels = [(text, sum(bands[i]) / 2) for text, i in layers]
    axis = min(box.y - box.height / 2 for box in boxes.values()) - AXIS
    letters = LETTER * max(_letters(line) for column in columns for line in column.lines)
    depth = letters if sideways else LINE * max(len(column.lines) for column in columns)
    logits = boxes["logits" + AT + spans[-1]]
    top = logits.y + logits.height / 2
    answer = None
    if prompted.answer:
        high = LETTER * _letters(prompted.answer) + 6 if sideways else LINE + 2
        answer = (logits.x, top + high / 2 + 2)
        top += high
    corners = (0.0, axis - depth, columns[-1].x + columns[-1].width / 2, top + PADDING)
    return ByPosition(boxes, paths, labels, corners, columns, moves, axis - depth / 2 if sideways else axis, answer)


def _groups(spans: Sequence[str], edges: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    """The spans of each column: one with edges, or some without."""
    for kept, run in groupby(spans, lambda span: span in edges):
        members = tuple(run)
        size = 1 if kept else -(-len(members) // -(-len(members) // FOLDED))
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _lines(group: tuple[str, ...], prompted: Prompted, width: float) -> tuple[str, ...]:
    """What stands below a column: a span's name and tokens; on a line each for spans that share a column."""
    texts = [" ".join(prompted.texts.get(span, "").split()) for span in group]
    texts = ["" if text == span else text for span, text in zip(group, texts, strict=True)]
    if len(group) > 1:
        return tuple(_cut(f"{span}  {text}".strip()) for span, text in zip(group, texts, strict=True))
    letters = max(WRAP, int(width / LETTER))
    return (_cut(group[0]), *textwrap.wrap(texts[0], letters, max_lines=LINES, placeholder=" …"))


def _letters(text: str) -> int:
    """The width of a text in letters: some scripts need two for each."""
    return sum(1 + (east_asian_width(letter) in "WF") for letter in text)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _tracks(
    circuit: Circuit, causal: bool, rows: Rows, x: Mapping[Spot, float]
) -> tuple[dict[tuple[str, str, str], float], list[float]]:
    """The height of each arc over its row, and the room above each row. Arcs on one track have no x in common; a short
    arc is below a long one."""
    row_of = {key: i for i, row in enumerate(rows) for key in row}
    arcs = defaultdict[int, list[tuple[float, float, tuple[str, str, str]]]](list)
    for head, a, b in moves_of(circuit, causal):
        i = row_of[head + AT + a]
        low, high = sorted((x[i, head + AT + a], x[i, head + AT + b]))
        arcs[i].append((low, high, (head, a, b)))
    heights = dict[tuple[str, str, str], float]()
    room = [0.0] * len(rows)
    for i, of_row in arcs.items():
        tracks: list[list[Point]] = []
        track_of = {}
        for low, high, move in sorted(of_row, key=lambda arc: arc[1] - arc[0]):
            free = (n for n, taken in enumerate(tracks) if all(high < a or b < low for a, b in taken))
            track_of[move] = next(free, len(tracks))
            if track_of[move] == len(tracks):
                tracks.append([])
            tracks[track_of[move]].append((low, high))
        step = min(TRACK, TRACKS / len(tracks))
        heights |= {move: LOW + step * n for move, n in track_of.items()}
        room[i] = LOW + step * len(tracks)
    return heights, room


def _arc(start: Box, end: Box, height: float) -> list[Point]:
    """Up from a box, across on its track, and down on another box of the row."""
    ahead = 1 if start.x < end.x else -1
    left, right = (box.x + way * ahead * box.width / 4 for box, way in ((start, 1), (end, -1)))
    top = start.y + start.height / 2
    track = top + height
    turn = TURN * ahead
    points = [(left, top), *straight((left, top), (left, track - TURN)), (left, track), (left, track)]
    points += [(left + turn, track), *straight((left + turn, track), (right - turn, track))]
    points += [(right, track), (right, track), (right, track - TURN)]
    points += straight(points[-1], (right, top + ARROW))
    return [*points, *straight(points[-1], (right, top))]
