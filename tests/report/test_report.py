"""The page of a run in a real browser: everything that can be done with it is done."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from acdc.commands.run import run
from acdc.evaluation.explain import Explanation, ShownPrompt
from acdc.files.circuit import edges_of, read_circuit, write_circuit
from acdc.files.parts import GraphPart
from acdc.files.published import Published, load_published
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.report import page as module
from acdc.report.page import render_many, render_report
from acdc.report.panels import Line, Panel, Point
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support.browser import opened
from tests.support.page import EVIL, file_of, hover, lit


@pytest.fixture(scope="module")
def ioi(tmp_path_factory) -> Path:
    """A run of IOI on tiny, with 20 prompts."""
    config, task, _ = resolve({"task": "ioi", "model": "tiny", "examples": 20}, None, None)
    return run(load(config, task), tmp_path_factory.mktemp("run") / "ioi")[1]


def large(edges: int) -> Circuit:
    """A circuit of about so many edges in a graph of GPT-2 small's size, all on a path."""
    g, rng = Graph(12, 12), np.random.default_rng(0)
    kept = g.edges & (rng.random(g.edges.shape) < edges / g.n_edges)
    kept[0] |= g.edges[0] & (rng.random(len(g.receivers)) < 0.5)
    kept[:, g.receiver_index["logits"]] |= rng.random(len(g.senders)) < 0.8
    scores = rng.lognormal(-3, 1.5, kept.shape) * rng.choice([1, 1, 1, -1], kept.shape)
    return Circuit(g, kept, None, np.where(kept, scores, np.nan)).pruned()


def residual(folder: Path) -> list[str]:
    """The names of a run's residual edges."""
    file = read_circuit(folder / "circuit.json")
    return [e.name for e in file.edges if e.name not in file.model.graph.direct_index]


def shown(page) -> int:
    return page.locator(".edge").count()


def test_the_answer_comes_first(browser, ioi):
    file, stated = read_circuit(ioi / "circuit.json"), json.loads((ioi / "metrics.json").read_text())
    with opened(browser, ioi / "report.html") as page:
        answer = page.locator(".answer").inner_text()
        value, low, high = stated["faithfulness"]["held_out"]
        assert answer.startswith(f"{file.graph.edges.kept} of the 479 edges of tiny")
        assert f"recover {value:.1%} (95 % interval {low:.1%} to {high:.1%}) of what it does on ioi" in answer
        assert "20 held-out prompts" in answer and "The circuit answers" in answer
        assert page.title() == "ioi in tiny: acdc, τ = 0.01"
        assert shown(page) == file.graph.edges.kept
        assert page.locator("g.node").count() == file.graph.nodes


def test_an_edge_says_its_score_margin_and_path(browser, ioi):
    edge = next(e for e in read_circuit(ioi / "circuit.json").edges if e.name == "m0->a1.h0<v>")
    decided = next(d for d in map(json.loads, (ioi / "log.jsonl").open()) if d["edge"] == edge.name)
    with opened(browser, ioi / "report.html") as page:
        said = hover(page, edge.name)
        assert said.splitlines()[0] == edge.name
        assert f"score {edge.score:.4g}" in said and f"increase in kl when removed: {edge.change:.4g} nats" in said
        assert f"{abs(decided['margin']):.4g} nats from τ = 0.01" in said
        path = re.search(r"strongest path: (.*)", said)[1]
        assert path.startswith("input → ") and "m0 → a1.h0<v> → " in path and path.endswith("logits")
        names = path.split(" → ")
        assert lit(page) == {f"{a.split('<')[0]}->{b}" for a, b in pairwise(names)}
        page.mouse.move(2, 2)
        assert page.locator("#tip").is_hidden() and not lit(page)


def test_a_node_opens_its_panel(browser, ioi):
    names = residual(ioi)
    with opened(browser, ioi / "report.html") as page:
        page.locator("[data-node='a2.h0']").click()
        panel = page.locator("#panel").inner_text()
        into, out = [n for n in names if "->a2.h0<" in n], [n for n in names if n.startswith("a2.h0->")]
        assert f"Incoming ({len(into)})" in panel and f"Outgoing ({len(out)})" in panel
        assert re.search(r"Adds [−\d.]+ logits directly to the difference", panel)
        assert panel.index("it looks at") < panel.index("Incoming") and page.locator("svg.heat rect").count() >= 15
        assert lit(page) == {*into, *out}
        first = page.locator(".heat").get_attribute("aria-label")
        page.locator("#panel select").select_option("2")
        assert page.locator(".heat").get_attribute("aria-label") != first
        page.locator("#panel li button").first.click()
        assert "strongest path" in page.locator("#panel").inner_text()
        page.keyboard.press("Escape")
        assert "How to read it" in page.locator("#panel").inner_text() and not lit(page)


def test_a_head_says_why_it_attends(browser, ioi):
    with opened(browser, ioi / "report.html") as page:
        page.locator("[data-node='a0.h0']").click()
        panel = page.locator("#panel").inner_text()
        said = (
            r"input->a0\.h0<[qk]>: from \" \w+\" to \" \w+\", \d+ % with the edge, \d+ % without\. It adds −[\d.]+ to"
        )
        assert len(re.findall(said, panel)) == sum(name.startswith("input->a0.h0<") for name in residual(ioi)) - 1 == 2
        assert re.search(r"along \d+ of 32 directions", panel)
        page.locator("[data-node='a1.h0']").click()  # read by its values alone
        assert "Why it attends" not in page.locator("#panel").inner_text()


def test_keys_do_what_the_mouse_does(browser, ioi):
    with opened(browser, ioi / "report.html") as page:
        page.locator("[data-node='m0']").focus()
        assert lit(page)
        page.keyboard.press("Enter")
        assert page.locator("#panel h3").first.inner_text() == "m0"
        assert page.locator("[data-node='m0']").get_attribute("aria-label").startswith("m0: ")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('role')") == "button"


def test_the_slider_leaves_the_strongest_edges_on_a_path(browser, ioi):
    file = read_circuit(ioi / "circuit.json")
    circuit = file.circuit()
    ranked = np.sort(np.abs(circuit.scores[circuit.kept]))[::-1]
    with opened(browser, ioi / "report.html") as page:
        for strongest in (len(ranked), 30, 12, 1):
            page.locator("#slider").fill(str(strongest))
            some = Circuit(circuit.graph, circuit.kept & (np.abs(circuit.scores) >= ranked[strongest - 1])).pruned()
            assert shown(page) == some.n_edges
            assert page.locator("#strongest").inner_text() == f"{strongest} of {len(ranked)}"
        assert "|score| ≥" in page.locator("#count").inner_text()


def test_kinds_of_edges_are_switched_off(browser, ioi):
    names = residual(ioi)
    with opened(browser, ioi / "report.html") as page:
        for kind, end in (("v", "<v>"), ("q", "<q>"), ("k", "<k>")):
            page.locator(f"#kind-{kind}").uncheck()
            names = [n for n in names if not n.endswith(end)]
            assert shown(page) == len(names)
        page.locator("#kind-plain").uncheck()
        assert shown(page) == 0


def test_names_are_found(browser, ioi):
    names = residual(ioi)
    with opened(browser, ioi / "report.html") as page:
        page.locator("#search").fill("A1.h1")
        found = {n for n in names if "a1.h1" in n}
        assert lit(page) == found and page.locator("#hits").inner_text() == f"{len(found)} edges"
        page.locator("#search").fill("m0")
        page.keyboard.press("Enter")
        assert page.locator("#panel h3").first.inner_text() == "m0"


def test_paths_are_shown(browser, ioi):
    with opened(browser, ioi / "report.html") as page:
        row = page.locator("#panel .path").first
        text = row.locator("button").inner_text()
        assert text.startswith("input → ") and text.endswith("→ logits")
        row.hover()
        assert len(lit(page)) == text.count("→")
        row.locator("button").click()
        assert "Its weakest edge has score" in page.locator("#panel").inner_text()


def test_two_circuits_are_compared(browser, ioi, tmp_path):
    file = read_circuit(ioi / "circuit.json")
    circuit = file.circuit()
    kept = circuit.kept.copy()
    gone = np.argwhere(kept)[-3:]
    kept[tuple(gone.T)] = False
    free = np.argwhere(circuit.graph.edges & ~circuit.kept)[5:7]
    kept[tuple(free.T)] = True
    other = Circuit(circuit.graph, kept, None, np.where(kept, 0.1, np.nan))
    parts = {"edges": tuple(edges_of(other)), "graph": GraphPart.of(other)}
    write_circuit(tmp_path / "other.json", file.model_copy(update=parts))
    (tmp_path / "bad.json").write_text("{")
    write_circuit(tmp_path / "else.json", file_of(large(100)))
    with opened(browser, ioi / "report.html") as page:
        page.locator("#other").set_input_files(tmp_path / "other.json")
        page.wait_for_selector(".edge.new")
        n = circuit.n_edges
        name = "ioi in tiny: acdc, τ = 0.01 (other.json)"
        assert page.locator("#compared").inner_text() == f"{n - 3} in both, 3 only in this circuit, 2 only in {name}"
        assert page.locator("#theirs").inner_text() == f"only in {name}" in page.locator("#panel").inner_text()
        assert "into query" not in page.locator("#panel").inner_text()
        assert not page.locator("#compare-error").inner_text()  # the same task and model
        assert [page.locator(f".edge.{s}").count() for s in ("both", "gone", "new")] == [n - 3, 3, 2]
        page.locator("#status-both").uncheck()
        assert shown(page) == 5
        page.locator("#stop").click()
        assert shown(page) == n and page.locator("#stop").is_hidden()
        for name, message in (
            ("bad.json", "is no JSON"),
            ("else.json", "12 layers, 12 heads, inputs input; this one has 4"),
        ):
            page.locator("#other").set_input_files(tmp_path / name)
            page.get_by_text(message).wait_for()
            assert shown(page) == n


def behind(page) -> list[tuple[str, str]]:
    """Edges that the browser has placed, and nodes that they pass behind without being theirs."""
    edges = page.evaluate("[...document.querySelectorAll('.hit')].map(p => [p.__data__, p.getAttribute('d')])")
    edges = [(edge, path) for edge, path in edges if edge["status"] == "new"]
    nodes = page.evaluate("[...document.querySelectorAll('g.node')].map(g => g.__data__)")
    t, found = np.linspace(0, 1, 21)[:, None], []
    for edge, path in edges:
        at, points = np.zeros(2), []
        for command, text in re.findall(r"([MCLVv])([^A-Za-z]*)", path):
            numbers = [float(x) for x in re.findall(r"-?[\d.]+", text)]
            if command in "Vv":
                numbers = [at[0], numbers[0] + (at[1] if command == "v" else 0)]
            ends = np.array(numbers).reshape(-1, 2)
            if command == "C":
                b, c, d = ends
                points.append((1 - t) ** 3 * at + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d)
            elif command != "M":
                points.append(at + t * (ends[0] - at))
            at = ends[-1]
        x, y = np.concatenate(points).T
        for n in nodes:
            near = (abs(x - n["x"]) < n["width"] / 2) & (abs(y - n["y"]) < n["height"] / 2)
            if near.any() and n["node"] not in (edge["from"], edge["to"]):
                found.append((edge["name"], n["node"]))
    return found


PLACES = "() => [...document.querySelectorAll('g.node')].map(g => [g.dataset.node, g.getAttribute('transform')])"


def test_no_edge_passes_behind_a_node_that_it_does_not_enter(browser, ioi, tmp_path):
    graph = read_circuit(ioi / "circuit.json").circuit().graph
    some = Circuit(graph, graph.edges & (np.random.default_rng(1).random(graph.edges.shape) < 0.2)).pruned()
    for name, circuit in (("a", large(150)), ("b", large(200)), ("c", some)):
        write_circuit(tmp_path / f"{name}.json", file_of(circuit))
        (tmp_path / f"{name}.html").write_text(render_report(file_of(circuit)))
    shutil.copy(ioi / "report.html", tmp_path / "ioi.html")
    for name, other in (("a", "b"), ("ioi", "c")):
        with opened(browser, tmp_path / f"{name}.html") as page:
            before = dict(page.evaluate(PLACES))
            page.locator("#other").set_input_files(tmp_path / f"{other}.json")
            page.wait_for_selector(".edge.new")
            assert behind(page) == []
            after = dict(page.evaluate(PLACES))
            assert before.items() <= after.items() and len(before) < len(after)  # nodes keep their places


def test_edges_end_in_arrowheads_at_their_receivers(browser, ioi):
    where = """() => [...document.querySelectorAll('g.edge')].map(g => {
        const [, x, y] = /^M([-\\d.]+),([-\\d.]+)l/.exec(g.querySelector('.arrow').getAttribute('d'));
        const box = [...document.querySelectorAll('g.node')].map(n => n.__data__).find(b => b.node === g.__data__.to);
        return [Math.abs(x - box.x) <= box.width / 2, Math.abs(y - box.y - box.height / 2) < 1.01] })"""
    with opened(browser, ioi / "report.html") as page:
        found = page.evaluate(where)
        assert len(found) == shown(page) and all(map(all, found))


def test_another_task_or_model_is_flagged_and_paths_stay_those_of_their_circuit(browser, ioi, tmp_path):
    graph = read_circuit(ioi / "circuit.json").circuit().graph
    kept = np.zeros_like(graph.edges)
    for name in ("input->m3", "m3->logits"):
        kept[graph.parse_edge(name)] = True
    write_circuit(tmp_path / "o.json", file_of(Circuit(graph, kept, None, np.where(kept, 9.0, np.nan)), "else"))
    paths = "[...document.querySelectorAll('#panel .path button')].map(b => b.textContent)"
    with opened(browser, ioi / "report.html") as page:
        own = page.evaluate(paths)
        page.locator("#other").set_input_files(tmp_path / "o.json")
        page.wait_for_selector(".edge.new")
        assert page.locator("#compare-error").inner_text() == (
            "o.json is of task else, not ioi and model else, not tiny: only the names of edges are compared."
        )
        assert page.evaluate(paths) == own
        assert "strongest path: input → m3 → logits" in hover(page, "m3->logits")
        colours = {page.locator(f".edge.{s}").first.evaluate("e => getComputedStyle(e).color") for s in ("gone", "new")}
        kinds = {page.evaluate(f"getComputedStyle(document.body).getPropertyValue('--{kind}')") for kind in "qkv"}
        assert len(colours) == 2 and not colours & {rgb(kind) for kind in kinds}
        page.locator("#slider").fill("20")
        assert "m3" not in "".join(page.evaluate(paths))


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_the_ring_stands_at_the_size_of_the_drawing_on_a_linear_axis(browser, ioi):
    with opened(browser, ioi / "report.html") as page:
        place = "d => [d.__data__.edges, +d.getAttribute('cx'), +d.getAttribute('cy')]"
        dots = page.evaluate(f"[...document.querySelectorAll('#curve .dot')].map({place})")
        edges, x, y = np.array(dots).T
        slope, zero = np.polyfit(edges, x, 1)
        assert zero + slope * edges == pytest.approx(x, abs=0.01)  # linear
        strongest = next(n for n in range(20, 45) if drawn(page, n) not in edges)
        n = drawn(page, strongest)
        ring = [float(page.locator("#curve .now").get_attribute(c)) for c in ("cx", "cy")]
        assert ring == pytest.approx([zero + slope * n, np.interp(n, edges, y)], abs=0.01)
        assert f"{n} edges: faithfulness about " in page.locator("#count").inner_text()


def drawn(page, strongest: int) -> int:
    """How many edges are drawn of the strongest ones."""
    page.locator("#slider").fill(str(strongest))
    return shown(page)


def test_answers_that_are_cut_end_in_an_ellipsis(tmp_path):
    predictions = {what: (("a", 0.5),) for what in ("model", "circuit", "ablated")}
    prompt = ShownPrompt(("a",), ("b",), 0, tuple("1234567"), ("x", "y"), predictions)
    html = render_report(file_of(large(60)), explanation=Explanation("held_out", (prompt,), {}, {}, {"held_out": ()}))
    shown_answers = re.sub("&#34;", '"', html)
    assert 'correct "1", "2", "3", "4", "5", … (7 in all); wrong "x", "y"<' in shown_answers


def test_change_is_absent_where_there_is_none(browser, tmp_path):
    file = file_of(large(60))
    unknown = file.model_copy(update={"edges": tuple(e.model_copy(update={"change": None}) for e in file.edges)})
    for name, given, columns in (("a", file, ["edge", "score", "change"]), ("b", unknown, ["edge", "score"])):
        (tmp_path / f"{name}.html").write_text(render_report(given))
        with opened(browser, tmp_path / f"{name}.html") as page:
            assert page.locator("details th").all_text_contents() == columns
            assert ("Change:" in page.content()) == (len(columns) == 3)


def test_the_core_of_stability_says_frequency(browser, tmp_path):
    file = file_of(large(60))
    method = file.method.model_copy(update={"name": "stability", "options": {"core": 0.9}})
    (tmp_path / "a.html").write_text(render_report(file.model_copy(update={"method": method})))
    with opened(browser, tmp_path / "a.html") as page:
        page.locator(".hit").last.dispatch_event("pointerenter")
        assert "frequency" in page.locator("#tip").inner_text()
        assert page.locator("details th").all_text_contents() == ["edge", "frequency", "change"]


OUT_OF_SIGHT = """() => [...document.querySelectorAll('th, td')].filter(c => c.offsetWidth)
    .filter(c => c.getBoundingClientRect().right > innerWidth + 1).map(c => c.textContent)"""


@pytest.mark.parametrize("width", [380, 400])
def test_every_column_is_in_sight_on_a_narrow_screen(browser, ioi, tmp_path, width):
    columns = [f"a_long_name_of_a_column_{i}" for i in range(25)]
    line = Line("a", (Point(1, 0.5, 0.4, 0.6, 0),))
    panels = [Panel("pareto", "pareto", "t", "x", "y", (line,))]
    (tmp_path / "many.html").write_text(render_many("t", "d", "s", columns, [[0.123456] * 25], [None], panels))
    for path in (ioi / "report.html", tmp_path / "many.html"):
        with opened(browser, path, width=width) as page:
            page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
            assert page.locator("td").count() > 20
            assert page.evaluate(OUT_OF_SIGHT) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [380, 1300])
def test_tooltips_stay_inside_the_window(browser, ioi, width):
    point = """([what, x, y]) => document.querySelector(what).dispatchEvent(
        new PointerEvent('pointerenter', {clientX: x, clientY: y}))"""
    with opened(browser, ioi / "report.html", width=width) as page:
        for corner in ((1, 1), (width - 2, 2), (2, 948), (width - 2, 948)):
            page.evaluate(point, [".hit", *corner])
            box = page.locator("#tip").bounding_box()
            assert (
                box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] >= 0 and box["y"] + box["height"] <= 950
            )


def test_a_long_name_of_a_run_stays_inside_its_tooltip(browser, tmp_path):
    panels = [Panel("pareto", "pareto", "t", "x", "y", (Line("a", (Point(1, 0.5, 0.4, 0.6, 0),)),))]
    (tmp_path / "many.html").write_text(render_many("t", "d", "s", ["run"], [["x" * 90]], [None], panels))
    with opened(browser, tmp_path / "many.html", width=380) as page:
        page.locator(".plot a").hover()
        box = page.locator("#tip").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 380
        assert page.evaluate("tip.scrollWidth <= tip.clientWidth")


def test_the_width_of_the_window_is_used(browser, ioi):
    with opened(browser, ioi / "report.html", width=1800) as page:
        assert page.locator(".stage").bounding_box()["width"] > 1700
        frame, circuit = (page.locator(x).bounding_box() for x in ("#picture", "#picture > g"))
        assert circuit["height"] > 0.9 * frame["height"] > 0.7 * 950  # as large as the window's height lets it be
        assert page.locator(".example").nth(1).bounding_box()["x"] > 800  # two prompts side by side


def test_decisions_are_searched_and_sorted(browser, ioi, tmp_path):
    log = [json.loads(line) for line in (ioi / "log.jsonl").open()]
    with opened(browser, ioi / "report.html") as page:
        page.get_by_text(f"{len(log)} edges were tested one by one").click()
        rows = page.locator("#decisions tbody tr")
        assert rows.count() == min(200, len(log))
        assert rows.first.locator("td").first.inner_text() == log[0]["edge"]
        page.locator("#logsearch").fill("a2.h")
        assert rows.count() == sum("a2.h" in d["edge"] for d in log)
        page.locator("#logkept").check()
        assert rows.count() == sum("a2.h" in d["edge"] and d["kept"] for d in log)
        page.locator("#logsearch").fill("")
        page.get_by_role("button", name="margin").click()
        assert (
            rows.first.locator("td").first.inner_text()
            == min((d for d in log if d["kept"]), key=lambda d: d["margin"])["edge"]
        )
        assert page.locator("#decisions th").nth(2).get_attribute("aria-sort") == "ascending"
    many = [{**log[0], "edge": f"e{i}"} for i in range(450)]
    (tmp_path / "many.html").write_text(render_report(read_circuit(ioi / "circuit.json"), many))
    with opened(browser, tmp_path / "many.html") as page:
        page.get_by_text("450 edges were tested").click()
        assert page.locator("#decisions tbody tr").count() == 200
        page.locator("#more").click()
        assert page.locator("#decisions tbody tr").count() == 450 and page.locator("#more").is_hidden()


def test_the_command_is_copied(browser, ioi):
    with opened(browser, ioi / "report.html") as page:
        page.locator("button.copy").first.click()
        page.get_by_text(re.compile("^(copied|selected.*)$")).wait_for()
        assert page.locator("#command").inner_text() == read_circuit(ioi / "circuit.json").command


def test_prompts_and_the_curve_are_told(browser, ioi):
    with opened(browser, ioi / "report.html") as page:
        assert page.locator(".example").count() == 4
        assert page.locator(".example").first.locator(".token.changed").count() == 6  # three names, in both prompts
        assert "everything ablated" in page.locator(".predictions").first.inner_text()
        assert page.locator("#curve .dot").count() >= 4
        assert page.locator("#curve svg").get_attribute("aria-label").startswith("Faithfulness by edges: ")


def test_an_exported_page_has_what_lies_beside_the_circuit(browser, ioi, tmp_path, call):
    assert call("export", ioi / "circuit.json", "--to", "html", "-o", tmp_path / "a.html")[0] == 0
    with opened(browser, ioi / "report.html") as page:
        answer, decisions = page.locator(".answer").inner_text(), page.locator("#logcount").text_content()
    with opened(browser, tmp_path / "a.html") as page:
        assert page.locator(".answer").inner_text() == answer
        assert page.locator("#logcount").text_content() == decisions
        assert "The report.html that acdc run writes also shows" in page.locator("body").inner_text()
    other = tmp_path / "other" / "circuit.json"  # beside the files of another run
    shutil.copytree(ioi, other.parent)
    write_circuit(other, file_of(large(60)))
    assert call("export", other, "--to", "html", "-o", tmp_path / "b.html")[0] == 0
    with opened(browser, tmp_path / "b.html") as page:
        assert "are the circuit that acdc finds" in page.locator(".answer").inner_text()
        assert page.locator("#decisions").count() == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"faithfulness": {}}, "faithfulness and metric should have the same halves"),
        ({"metric": {"held_out": [0.1, 0.2]}}, "metric.held_out"),
        ({"cost": {}}, "cost.seconds: is missing"),
        ({"metrics": {"held_out.model.kl": "b"}}, "metrics.held_out.model.kl"),
        ({"more": 1}, "unknown key 'more'"),
    ],
)
def test_measures_that_are_none_are_refused(ioi, tmp_path, call, change, said):
    shutil.copytree(ioi, tmp_path / "run")
    path = tmp_path / "run" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for command in (("export", tmp_path / "run" / "circuit.json", "--to", "html"), ("results", tmp_path)):
        code, _, err = call(*command)
        assert code == 2 and f"metrics.json: {said}" in err, err


def test_a_circuit_with_few_measures_is_shown(ioi, tmp_path, call):
    file = read_circuit(ioi / "circuit.json")
    some = {"held_out.circuit.kl": 0.5, "held_out.circuit.a.b": 2.0}
    write_circuit(tmp_path / "c.json", file.model_copy(update={"metrics": some}))
    assert call("export", tmp_path / "c.json", "--to", "html")[0] == 0
    assert "held-out a.b" in (tmp_path / "c.html").read_text()


def test_published_classes_are_shown(browser, tmp_path):
    published = load_published("ioi")
    (tmp_path / "a.html").write_text(render_report(file_of(published.circuit), published=published))
    with opened(browser, tmp_path / "a.html") as page:
        name, nodes = next(iter(published.classes.items()))
        assert f"{name}: {len(nodes)} of {len(nodes)}" in page.locator("#panel").inner_text()
        page.locator(f"[data-node='{nodes[0]}']").click()
        assert name in page.locator("#panel p").first.inner_text()
        fills = {page.locator(f"[data-node='{n}'] .body").evaluate("e => e.style.fill") for n in nodes}
        assert len(fills) == 1 and fills != {""}


def test_two_thousand_edges_are_drawn_within_two_seconds(browser, tmp_path):
    circuit = large(2000)
    assert 1900 < circuit.n_edges < 2600
    log = [{"edge": n, "change": 0.1, "margin": -0.1, "metric": 1.0, "kept": True} for n in circuit.edge_names()] * 10
    (tmp_path / "a.html").write_text(render_report(file_of(circuit), log))
    with opened(browser, tmp_path / "a.html") as page:
        assert float(page.evaluate("document.documentElement.dataset.drawn")) < 2000
        ranked = np.sort(np.abs(circuit.scores[circuit.kept]))[::-1]
        for strongest in (300, 1500):  # 300 at first
            some = Circuit(circuit.graph, circuit.kept & (np.abs(circuit.scores) >= ranked[strongest - 1])).pruned()
            assert page.locator("#slider").input_value() == str(strongest)
            assert page.locator("#strongest").inner_text() == f"{strongest:,} of {circuit.n_edges:,}"
            assert f"{some.n_edges:,} of them on a path" in page.locator("#count").inner_text()
            assert shown(page) == some.n_edges
            page.locator("#slider").fill("1500")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1300])
def test_it_fits_the_screen_in_light_and_dark(browser, ioi, scheme, width):
    with opened(browser, ioi / "report.html", width=width, scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(26, 26, 26)")
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert contrast(ink, background) > 7
        for soft in (".soft", "#panel button", "th"):
            assert contrast(page.locator(soft).first.evaluate("e => getComputedStyle(e).color"), background) > 4.5


def contrast(a: str, b: str) -> float:
    """WCAG's contrast of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_it_prints_with_everything_open(browser, ioi):
    """The page's own `beforeprint` listener has run when this one counts what is closed."""
    closed = "document.querySelectorAll('details:not([open])').length"
    with opened(browser, ioi / "report.html") as page:
        before = page.evaluate(closed)
        assert before == page.locator("details").count() >= 4
        page.evaluate(f"addEventListener('beforeprint', () => {{ window.closedInPrint = {closed} }})")
        pdf = page.pdf(format="A4")
        assert pdf.startswith(b"%PDF") and len(pdf) > 30_000
        assert page.evaluate("window.closedInPrint") == 0
        assert page.evaluate(closed) == before  # and afterwards as before
        page.emulate_media(media="print")
        assert page.locator(".tools").first.is_hidden()


def test_whatever_is_named_is_shown_as_text(browser, tmp_path):
    circuit = large(60)
    file = file_of(circuit, EVIL)
    predictions = {what: ((EVIL, 0.5),) for what in ("model", "circuit", "ablated")}
    prompt = ShownPrompt((EVIL, "a"), (EVIL, "b"), 1, (EVIL,), (EVIL,), predictions)
    (tmp_path / "a.html").write_text(
        render_report(file, [{"edge": EVIL, "change": 1.0, "margin": 1.0, "metric": 1.0, "kept": True}],
                      explanation=Explanation(EVIL, (prompt,), {}, {}, {EVIL: ()}),
                      published=Published(EVIL, EVIL, EVIL, EVIL, circuit.graph, {EVIL: ("m3",)}, None))
    )  # fmt: skip
    with opened(browser, tmp_path / "a.html") as page:
        assert page.locator("h1").text_content() == f"{EVIL} in {EVIL}"
        assert EVIL in page.evaluate("document.getElementById('command').textContent")
        assert page.locator("img").count() == 0 and page.locator("script").count() == 4
        page.locator("[data-node='m3']").click()
        assert "<script>" in page.locator("#panel").inner_text()
        page.get_by_text("edges were tested").click()
        assert "onerror" in page.locator("#decisions").inner_text()
        tokens = [token.text_content() for token in page.locator(".token").all()]
        assert tokens == [EVIL, "a", EVIL, "b"]
        assert page.locator(".token.changed").all_text_contents() == ["a", "b"]
        assert page.locator(".predictions td").first.text_content() == EVIL


def test_hostile_texts_of_a_sweep_are_shown_as_text(browser, tmp_path):
    line = Line(EVIL, (Point(1, 0.5, 0.4, 0.6, 0), Point(2, 0.7, None, None, 0)))
    panel = Panel("pareto", "pareto", EVIL, EVIL, EVIL, (line, Line("other", line.points)))
    html = render_many(EVIL, EVIL, EVIL, ["run", EVIL], [[EVIL, 1.0]], [None], [panel], [EVIL])
    (tmp_path / "a.html").write_text(html)
    with opened(browser, tmp_path / "a.html") as page:
        for place in ("h1", ".answer", ".note", "title", "#table td", ".plot text[font-weight]"):
            assert page.locator(place).first.text_content() == EVIL
        assert page.locator("#legend button").first.text_content() == f" {EVIL}"
        assert page.locator("img").count() == 0 and page.locator("script").count() == 3


@pytest.mark.parametrize("empty", [True, False])
def test_circuits_without_edges_or_scores(browser, tmp_path, empty):
    graph = Graph(2, 2)
    circuit = Circuit.empty(graph) if empty else Circuit.full(graph)
    (tmp_path / "a.html").write_text(render_report(file_of(circuit)))
    with opened(browser, tmp_path / "a.html") as page:
        assert shown(page) == circuit.n_edges
        page.locator("[data-node='logits']").click()
        assert f"Incoming ({0 if empty else 7})" in page.locator("#panel").inner_text()


def test_a_long_log_is_cut_where_it_matters_least(monkeypatch, ioi):
    monkeypatch.setattr(module, "LOG_ROWS", 4)
    log = [
        {"edge": f"e{i}", "change": 0.0, "margin": m, "metric": 0.0, "kept": kept}
        for i, (m, kept) in enumerate(
            [(3.0, False), (-9.0, True), (0.1, False), (2.0, False), (-1.0, True), (1.0, False)]
        )
    ]
    text = render_report(read_circuit(ioi / "circuit.json"), log)
    rows = json.loads(re.search(r'id="log">(.*?)</script>', text)[1])
    assert [r[0] for r in rows] == ["e1", "e2", "e4", "e5"]
    assert "shown are the kept ones and those nearest to τ, 4 in all" in text


def test_the_page_of_a_target_has_the_path_on_both_halves(browser, tmp_path):
    given = {"task": "greater-than", "model": "tiny", "examples": 6, "faithfulness": 0.7}
    config, task, _ = resolve(given, None, None)
    file, folder = run(load(config, task), tmp_path / "run")
    sizes = [line.split(",")[0] for line in (folder / "frontier.csv").read_text().splitlines()[1:]]
    with opened(browser, folder / "report.html") as page:
        assert "smallest found of faithfulness 0.7" in page.locator(".summary, header, body").first.inner_text()
        assert page.get_by_text("The path: nested circuits of every size").count() == 1
        titles = page.locator("#curve .dot title").evaluate_all("all => all.map(x => x.textContent)")
        assert [title.split()[0] for title in titles] == sizes and str(file.graph.edges.kept) in sizes
        assert page.locator("#curve .searched").get_attribute("d").count("L") == len(sizes) - 1
        assert f"{file.graph.edges.kept} edges: faithfulness" in page.locator("#count").inner_text()
        page.get_by_text("tests and changes of edges").click()
        assert page.locator("#decisions tbody tr").count() > 10
