"""Where the nodes of a circuit stand and how its edges run: a layered layout, as values.

Rows go up from the inputs to the logits; a layer has a row of heads and above it one of its MLP. A single input, the
MLPs and the logits form the middle column; heads stand left and right of it, near their neighbours. An edge that
passes rows on its way does so in a lane; the edges of a sender share one lane at each side of the middle column.
Edges bend between two rows and run straight beside a row, so no edge crosses the box of another node or comes near it.
Heads stand in index order where no edges cross for it.

x grows to the right and y up, in points. A picture may turn the layout on its side.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise, product
from typing import NamedTuple, TypeVar

import numpy as np

from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph


class Lane(NamedTuple):
    """Where edges of a sender pass a row. `side` is -1 left of the middle column, 0 in it, 1 right of it."""

    sender: str
    kind: str
    side: int


Point = tuple[float, float]
Item = str | Lane  # what has a place in a row: a node or a lane
Spot = tuple[int, Item]  # row, item
Key = TypeVar("Key")
Link = tuple[Spot, Spot]  # what an edge connects in two neighbouring rows, the lower one first
Rows = list[list[str]]
End = tuple[str, str, str, str]  # of an edge: its name, sender, receiving node and kind ("q", "k", "v" or another)

# (across, along): along is the direction in which edges run. Names are written horizontally in both.
UPRIGHT = {"head": (62.0, 36.0), "mlp": (76.0, 24.0), "end": (76.0, 26.0)}
SIDEWAYS = {"head": (46.0, 64.0), "mlp": (52.0, 44.0), "end": (26.0, 64.0)}
PORT = {"q": -1, "k": 0, "v": 1}
ARROW = 9.0  # the last, straight piece of an edge
LETTER = 7.5  # width of a letter of a node's name
GAP, SLOPE, WIDEST = 30.0, 0.1, 80.0  # between rows: GAP + SLOPE × how far an edge runs across, at most WIDEST
BETWEEN = {0: 7.0, 1: 14.0, 2: 14.0}  # two neighbours in a row of which so many are nodes
NARROW = {0: 6.0, 1: 10.0, 2: 7.0}  # the same in a narrow layout
MIDDLE = 10.0  # half the width of the middle column beside heads
CROWD = 300  # edges from which on a sender has one lane per side, not one per kind of receiver
SWEEPS = 24


@dataclass(frozen=True)
class Box:
    """A node, or a column of nodes: its kind ("head", "mlp", "end" or "column"), centre and size."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """The layout of a circuit. A path is cubic Bézier curves: the start, then three points per curve. The last is a
    straight line of length ARROW."""

    boxes: dict[str, Box]  # by node, row by row
    paths: dict[str, list[Point]]  # by edge
    labels: list[tuple[str, float]]  # of layers: text, y
    corners: tuple[float, float, float, float]  # left, bottom, right and top of all boxes and paths


def port(kind: str, narrow: bool = False) -> float:
    """The x of a head's input ("q", "k" or "v") relative to the head; 0 for inputs of other nodes."""
    return PORT.get(kind, 0) * (14.0 if narrow else 19.0)


def lay_out(circuit: Circuit, sideways: bool = False) -> Layout:
    """Lay out all nodes and edges; `sideways` for a picture that swaps x and y, where a box's width is its height."""
    g = circuit.graph
    kinds = kinds_of(g)
    rows, labels = rows_of(circuit)
    sizes = {name: size_of(name, kinds[name], sideways) for row in rows for name in row}
    edges = []
    for s, r in zip(*circuit.kept.nonzero(), strict=True):
        receiver = g.receivers[r]
        edges.append((g.edge_name(s, r), g.senders[s].name, receiver.node, receiver.kind))
    chains, x = across(rows, kinds, sizes, edges, len(edges) > CROWD)
    bands, boxes, paths = along(rows, kinds, sizes, edges, chains, x, sideways)
    points = [point for path in paths.values() for point in path]
    points += [(b.x + i * b.width / 2, b.y + i * b.height / 2) for b in boxes.values() for i in (-1, 1)]
    xs, ys = zip(*points, strict=True)
    corners = (min(xs), min(ys), max(xs), max(ys))
    return Layout(boxes, paths, [(text, sum(bands[i]) / 2) for text, i in labels], corners)


def kinds_of(g: Graph) -> dict[str, str]:
    """The kind of box of each node."""
    return {s.name: "end" if s.kind == "input" else s.kind for s in g.senders} | {"logits": "end"}


def size_of(name: str, kind: str, sideways: bool, upright: dict[str, Point] = UPRIGHT) -> Point:
    """The size of a node's box, (across, along), where its name has room."""
    width, depth = SIDEWAYS[kind] if sideways else upright[kind]
    length = LETTER * len(name) + (10 if upright is UPRIGHT else 6)
    return (width, max(depth, length)) if sideways else (max(width, length), depth)


def rows_of(circuit: Circuit) -> tuple[list[list[str]], list[tuple[str, int]]]:
    """The nodes row by row, and the layer labels with the numbers of their rows."""
    g = circuit.graph
    touched = set(circuit.nodes())
    rows = [list(g.inputs)]
    labels = []
    for layer in range(g.n_layers):
        first = len(rows)
        for kind in ("head", "mlp"):
            names = [s.name for s in g.senders if (s.layer, s.kind) == (layer, kind) and s.name in touched]
            if names:
                rows.append(names)
        if len(rows) > first:
            labels.append((f"layer {layer}", first))
    return [*rows, ["logits"]], labels


def across(
    rows: Rows, kinds: dict[str, str], sizes: dict[str, Point], edges: list[End], crowded: bool, narrow: bool = False
) -> tuple[dict[str, list[Spot]], dict[Spot, float]]:
    """The spots that each edge passes, and the x of each spot; nodes in the middle column are at 0. A `narrow` layout
    has its nodes nearer to each other, heads always in the order of `rows`."""
    row_of = {name: i for i, row in enumerate(rows) for name in row}
    places = _order(rows, kinds, [] if narrow else [(sender, node) for _, sender, node, _ in edges])
    column = [row[0] for row in rows if row and places[row[0]] == 0]
    chains: dict[str, list[Spot]] = {}
    for name, sender, node, kind in edges:
        side = _side(sender, node, places, column)
        lane = Lane(sender, "" if crowded else kind, side)
        between = range(row_of[sender] + 1, row_of[node])
        chains[name] = [(row_of[sender], sender), *((i, lane) for i in between), (row_of[node], node)]
    return chains, _spread(rows, places, _links(chains), sizes, narrow)


def along(
    rows: Rows,
    kinds: dict[str, str],
    sizes: dict[str, Point],
    edges: list[End],
    chains: dict[str, list[Spot]],
    x: dict[Spot, float],
    narrow: bool,
    room: Sequence[float] | None = None,
) -> tuple[list[Point], dict[str, Box], dict[str, list[Point]]]:
    """The lowest and the highest y of each row, the boxes and the paths, which are straight in the `room` above a row,
    where other things may be."""
    links = _links(chains)
    rooms = room or [0.0] * len(rows)
    bands = _bands(rows, links, x, sizes, rooms)
    passed = [(low, high + extra) for (low, high), extra in zip(bands, rooms, strict=True)]
    boxes = {}
    for i, row in enumerate(rows):
        low, high = bands[i]
        for name in row:
            boxes[name] = Box(kinds[name], x[i, name], (low + high) / 2, sizes[name][0], high - low)
    docks = _docks(links, x, boxes)
    paths = {}
    for name, _, _, kind in edges:
        chain = chains[name]
        xs = [x[spot] for spot in chain]
        xs[0] += docks.get((chain[0], chain[1]), 0.0)
        xs[-1] += docks.get((chain[-1], chain[-2]), port(kind, narrow))
        first = chain[0][0]
        paths[name] = _path(xs, passed[first : chain[-1][0] + 1], bands[first][1])
    return bands, boxes, paths


def _links(chains: dict[str, list[Spot]]) -> list[Link]:
    """What the edges connect, each once."""
    return list(dict.fromkeys(link for chain in chains.values() for link in pairwise(chain)))


def _order(rows: Rows, kinds: dict[str, str], ends: list[tuple[str, str]]) -> dict[str, float]:
    """A place for each node: 0 in the middle column, -1, -2, … left and 1, 2, … right of it. The nodes of a row are
    sorted by the mean place of their neighbours, and by index where that makes no edge longer."""
    near = defaultdict(list)
    for sender, node in ends:
        near[sender].append(node)
        near[node].append(sender)
    places: dict[str, float] = {}
    for sweep in range(SWEEPS):
        odd_goes_left = False  # rows with an odd number of nodes have one more right and left in turn
        for row in rows:
            if len(row) == 1 and kinds[row[0]] != "head":
                places[row[0]] = 0
                continue
            if sweep:
                wish = {name: sum(places[other] for other in near[name]) / max(len(near[name]), 1) for name in row}
                row = sorted(row, key=lambda name: (wish[name], places[name]))
            left = len(row) // 2
            if len(row) % 2:
                left += odd_goes_left
                odd_goes_left = not odd_goes_left
            for i, name in enumerate(row):
                places[name] = i - left if i < left else i - left + 1

    def length(a: str, b: str) -> float:
        """How far the edges of two nodes run across."""
        return sum(abs(places[node] - places[other]) for node in (a, b) for other in near[node])

    for row in rows:
        _into_index_order(row, places, length)
    return places


def _into_index_order(nodes: list[Key], where: dict[Key, float], cost: Callable[[Key, Key], float]) -> None:
    """Exchange two nodes of a row, given in index order, where that brings them into this order and costs nothing."""
    for a, b in combinations(nodes, 2):
        if where[a] > where[b]:
            before = cost(a, b)
            where[a], where[b] = where[b], where[a]
            if cost(a, b) > before:
                where[a], where[b] = where[b], where[a]


def _side(sender: str, node: str, places: dict[str, float], column: list[str]) -> int:
    """The side of the middle column at which an edge runs: the receiver's, or else the sender's."""
    beside = places[node] or places[sender]
    if beside:
        return 1 if beside > 0 else -1
    number = column.index(sender)
    if column[number + 1] == node:
        return 0
    return 1 if number % 2 else -1  # around the nodes between the two, right and left in turn


def _spread(
    rows: Rows, places: dict[str, float], links: list[Link], sizes: dict[str, Point], narrow: bool
) -> dict[Spot, float]:
    """The x of each spot: as near as possible to those that it is linked with."""
    below, above, gaps = defaultdict(list), defaultdict(list), defaultdict(list)
    for low, high in links:
        below[high].append(low)
        above[low].append(high)
        gaps[low[0]].append((low, high))
    items: list[dict[Item, float]] = [{name: places[name] for name in row} for row in rows]  # with their sides
    for i, item in (*below, *above):
        if isinstance(item, Lane):
            items[i][item] = item.side
    x = {(i, item): 70.0 * side for i, row in enumerate(items) for item, side in row.items()}

    for sweep in range(SWEEPS):
        up = sweep % 2 == 1
        settled = sweep >= SWEEPS // 2  # the order in the rows is found: now lanes become straight
        if sweep == SWEEPS // 2:
            for (i, names), side in product(enumerate(rows), (-1, 1)):
                spots: list[Spot] = [(i, name) for name in names if places[name] * side > 0]
                _into_index_order(spots, x, partial(_crossings, gaps, x))
        for i in range(len(rows)) if up else reversed(range(len(rows))):
            row = items[i]
            wish: dict[Item, float] = {}
            for item in row:
                spot = (i, item)
                near = below[spot] if up else above[spot]
                if settled:
                    beside = [(i - 1, item), (i + 1, item)] if up else [(i + 1, item), (i - 1, item)]
                    near = [other for other in beside if other in x][:1] or below[spot] + above[spot]
                wish[item] = sum(x[other] for other in near) / len(near) if near else x[spot]
            middle = max((sizes[item][0] / 2 for item in row if not row[item] and item in sizes), default=MIDDLE)
            if narrow and 0 not in row.values():
                middle = 0.0
            for side in (-1, 1):
                chosen = [item for item in row if row[item] * side > 0]
                chosen.sort(key=lambda item: side * (x[i, item] if settled else wish[item]))
                if narrow:
                    own = (item for item in chosen if isinstance(item, str))
                    nodes = iter(sorted(own, key=lambda name: abs(places[name])))
                    chosen = [next(nodes) if item in places else item for item in chosen]
                widths = [sizes[item][0] if isinstance(item, str) else 0.0 for item in chosen]
                fitted = _fit([side * wish[item] for item in chosen], widths, middle, NARROW if narrow else BETWEEN)
                x |= {(i, item): side * place for item, place in zip(chosen, fitted, strict=True)}
    return x


def _crossings(gaps: dict[int, list[Link]], x: dict[Spot, float], a: Spot, b: Spot) -> int:
    """How often the links of two spots of a row cross others; `gaps` has the links above each row."""
    count = 0
    for links in (gaps[a[0] - 1], gaps[a[0]]):
        low, high = np.array([(x[low], x[high]) for low, high in links]).reshape(-1, 2).T
        own = np.array([a in link or b in link for link in links], dtype=bool)
        count += int(((low[own, None] - low) * (high[own, None] - high) < 0).sum())
    return count


def _fit(wishes: list[float], widths: list[float], start: float, between: dict[int, float]) -> list[float]:
    """Centres of nodes and of lanes, which have width 0, in this order and without overlap after `start`: the sum of
    squared distances from the wishes is smallest (isotonic regression by pooling adjacent violators)."""
    least = []
    end, nodes = start, 1
    for width in widths:
        least.append(end + between[nodes + (width > 0)] + width / 2)
        end = least[-1] + width / 2
        nodes = int(width > 0)
    pools: list[tuple[float, int]] = []  # sum and number of the shifts from `least` that are equal
    for wish, low in zip(wishes, least, strict=True):
        total, number = wish - low, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / number:
            total += pools[-1][0]
            number += pools.pop()[1]
        pools.append((total, number))
    shifts = [max(total / number, 0.0) for total, number in pools for _ in range(number)]
    return [low + shift for low, shift in zip(least, shifts, strict=True)]


def _bands(
    rows: Rows, links: list[Link], x: dict[Spot, float], sizes: dict[str, Point], room: Sequence[float]
) -> list[Point]:
    """The lowest and the highest y of each row. The gap below a row is higher, the farther edges run across in it."""
    across = [0.0] * len(rows)
    for low, high in links:
        across[high[0]] = max(across[high[0]], abs(x[high] - x[low]))
    bands: list[Point] = []
    for row, far, extra in zip(rows, across, [0.0, *room[:-1]], strict=True):
        depth = max((sizes[name][1] for name in row), default=0.0)
        gap = min(GAP + SLOPE * far, WIDEST) + extra
        bottom = bands[-1][1] + gap if bands else 0.0
        bands.append((bottom, bottom + depth))
    return bands


def _docks(links: list[Link], x: dict[Spot, float], boxes: dict[str, Box]) -> dict[tuple[Spot, Spot], float]:
    """Where links touch a node other than a head, relative to its x: (the node's spot, the other spot) → x. What
    comes straight from below or above touches it in the middle."""
    touching = defaultdict(list)
    for low, high in links:
        touching[low, "top"].append(high)
        touching[high, "bottom"].append(low)
    docks: dict[tuple[Spot, Spot], float] = {}
    for (spot, _), others in touching.items():
        box = boxes.get(spot[1]) if isinstance(spot[1], str) else None
        if box is None or box.kind == "head":
            continue
        for side in (-1, 0, 1):
            chosen = [other for other in others if (x[other] > box.x) - (x[other] < box.x) == side]
            chosen.sort(key=lambda other: abs(x[other] - box.x))
            step = min(8.0, (box.width / 2 - 6) / max(len(chosen), 1))
            docks |= {(spot, other): side * step * (i + 1) for i, other in enumerate(chosen)}
    return docks


def _path(across: list[float], bands: list[Point], top: float) -> list[Point]:
    """From the `top` of the first node to the bottom of the last: straight beside a row, bent between two."""
    points = [(across[0], top)]
    if top < bands[0][1]:
        points += straight(points[0], (across[0], bands[0][1]))
    for i in range(1, len(across)):
        start, y0 = points[-1]
        end, (low, high) = across[i], bands[i]
        last = i == len(across) - 1
        y1 = low - ARROW if last else low
        middle = (y0 + y1) / 2
        points += [(start, middle), (end, middle), (end, y1)]
        points += straight((end, y1), (end, low if last else high))
    return points


def straight(start: Point, end: Point) -> list[Point]:
    """The last three points of a straight curve."""
    return [*((start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t) for t in (1 / 3, 2 / 3)), end]
