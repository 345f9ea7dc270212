// The interactive part of a run's page. All that it shows comes from the JSON in the page and is set as text, never as HTML.
const data = read("data");
const PARTS = /^([^<>]+)->([^<>]+?)(?:<([qkv])>)?$/;  // of a residual edge
const AT = " @ ";  // between an edge or a node and its span
const HEAD = /^a(\d+)\.h(\d+)$/, MLP = /^m(\d+)(?:\.\w+)?$/;
const TINTS = ["#77AADD", "#EE8866", "#FFAABB", "#99DDFF", "#AAAA00", "#EEDD88", "#44BB99", "#BBCC33"];  // those of the pictures
const KINDS = [["q", "into query"], ["k", "into key"], ["v", "into value"], ["plain", "into MLP or logits"]];
const PAGE_OF_LOG = 200, PATHS = 8, SEEN = .01;
const percent = x => (100 * x).toFixed(1) + " %";
const interval = ([value, low, high], format) => format(value) + (low === null ? "" : ` [${format(low)}, ${format(high)}]`);
const classOf = new Map(Object.entries(data.classes).flatMap(([name, nodes]) => nodes.map(node => [node, name])));
const tintOf = new Map(Object.keys(data.classes).map((name, i) => [name, TINTS[i % TINTS.length]]));
const effects = new Map(Object.entries(data.direct));

// ------------------------------------------------------------------------------------------------ the circuit

function toEdge([name, score, change, margin, span]) {
  const [, from, to, input] = PARTS.exec(name), at = span === undefined ? "" : AT + span;
  return { name: name + at, from, to, at, start: from + at, end: to + at, kind: input || "plain", score, change, margin, size: score === null ? 0 : Math.abs(score), status: "kept" };
}

// The circuit by position, if its edges have spans, and without spans.
const viewOf = (unit, { layout, edges }) => ({ unit, layout, edges: edges.map(toEdge).sort((a, b) => b.size - a.size) });
const views = { union: viewOf("edges", data) };
if (data.positions) views.positions = viewOf("edge-spans", data.positions);
let view = views.positions ?? views.union, own = view.edges;
const scored = own.some(e => e.score !== null), counted = view.unit;  // what the curve counts
const strongest = () => scored ? Math.min(own.length, data.most) : own.length;
const state = { strongest: strongest(), kinds: new Set(KINDS.map(([kind]) => kind)), found: "", pinned: null, other: null, statuses: new Set(["both", "gone", "new"]) };

function layerOf(node) {  // twice the layer for heads, one more for its MLP
  if (node === "logits") return 2 * data.graph.layers + 1;
  const head = HEAD.exec(node), mlp = MLP.exec(node);
  return head ? 2 * +head[1] : mlp ? 2 * +mlp[1] + 1 : -1;
}

// A head may write at any span what it reads as key or value; all else stays at its span.
const moved = e => e.at !== "" && (e.kind === "k" || e.kind === "v");
const into = e => moved(e) ? e.to : e.end, outOf = e => e.at === "" ? [e.start] : [e.start, e.from];
const upwards = edges => [...edges].sort((a, b) => layerOf(a.from) - layerOf(b.from) || layerOf(a.to) - layerOf(b.to));
const downwards = edges => [...edges].sort((a, b) => layerOf(b.to) - layerOf(a.to) || layerOf(b.from) - layerOf(a.from));
const isInput = node => data.graph.inputs.includes(node);

// Edges on a path from an input to the logits.
function live(edges) {
  const fed = new Set(), used = new Set(), dead = new Set(edges);
  for (const e of upwards(edges)) if (isInput(e.from) || outOf(e).some(key => fed.has(key))) { fed.add(into(e)); dead.delete(e); }
  for (const e of downwards(edges)) if (e.to === "logits" || used.has(into(e))) outOf(e).forEach(key => used.add(key)); else dead.add(e);
  return edges.filter(e => !dead.has(e));
}

const cutEdges = () => state.strongest < own.length ? live(own.slice(0, state.strongest)) : own;

function shownEdges() {
  const cut = cutEdges();
  let edges = cut;
  if (state.other) {
    const here = new Map(cut.map(e => [e.name, e])), there = new Map(state.other.edges.map(e => [e.name, e]));
    edges = [...cut.map(e => ({ ...e, status: there.has(e.name) ? "both" : "gone", theirs: there.get(e.name)?.score })),
             ...state.other.edges.filter(e => !here.has(e.name)).map(e => ({ ...e, status: "new" }))];
    edges = edges.filter(e => state.statuses.has(e.status));
  }
  return edges.filter(e => state.kinds.has(e.kind));
}

// The path through each edge whose weakest edge is strongest, and the strongest of these. No path goes where a head hardly looks.
function widest(edges) {
  const looks = d3.group((view.layout.moves ?? []).filter(([, , , share]) => share === null || share >= SEEN), ([head, from]) => head + AT + from);
  const ahead = e => [e.end, ...(moved(e) ? looks.get(e.end) ?? [] : []).map(([head, , to]) => head + AT + to)];
  const before = new Map(), after = new Map(), end = { width: Infinity, edge: null };
  const better = (map, key, width, edge) => { if (!map.has(key) || map.get(key).width < width) map.set(key, { width, edge }); };
  const source = e => isInput(e.from) ? end : before.get(e.start);
  const target = e => e.to === "logits" ? end : d3.greatest(ahead(e).flatMap(key => after.get(key) ?? []), found => found.width);
  for (const e of upwards(edges)) { const found = source(e); if (found) for (const key of ahead(e)) better(before, key, Math.min(found.width, e.size), e); }
  for (const e of downwards(edges)) { const found = target(e); if (found) better(after, e.start, Math.min(found.width, e.size), e); }
  const through = e => {
    if (!source(e) || !target(e)) return null;
    const path = [e];
    for (let edge = source(e).edge; edge; edge = source(edge).edge) path.unshift(edge);
    for (let edge = target(e).edge; edge; edge = target(edge).edge) path.push(edge);
    return { edges: path, width: d3.min(path, x => x.size) };
  };
  return { through, best() {
    const found = new Map();
    for (const e of edges) { const path = through(e); if (path) found.set(path.edges.map(x => x.name).join(), path); }
    return [...found.values()].sort((a, b) => b.width - a.width).slice(0, PATHS);
  } };
}

// ------------------------------------------------------------------------------------------------ the picture

const ARROW = 9, CLEAR = 10;  // length of an arrowhead; how far edges keep from other nodes
const PORT = { q: -19, k: 0, v: 19, plain: 0 };

// Python has placed the circuit's own nodes and edges, and there they stay. Nodes of the other circuit alone stand right of
// them: in the row of their layer or, without one, between the rows below and above it, where they may have to be smaller.
function place(edges) {
  const at = new Map(Object.entries(view.layout.nodes).map(([key, [x, y, width, height]]) => [key, { node: key.split(AT)[0], x, y, width, height, scale: 1 }]));
  const rows = d3.rollup([...at], ([[, box]]) => box, ([node]) => layerOf(node)), own = d3.sort(rows.keys()), right = view.layout.corners[2], taken = new Map();
  const added = d3.groups([...new Set(edges.flatMap(e => [e.start, e.end]))].filter(node => !at.has(node)), layerOf).sort((a, b) => a[0] - b[0]);
  for (const [layer, nodes] of added) {
    const below = rows.get(d3.max(own.filter(l => l <= layer))), above = rows.get(d3.min(own.filter(l => l > layer)));
    const among = added.map(([l]) => l).filter(l => !rows.has(l) && rows.get(d3.max(own.filter(o => o < l))) === below), number = among.indexOf(layer);
    const [width, full] = MLP.test(nodes[0]) ? [76, 24] : [62, 36], room = (below.y - below.height / 2 - above.y - above.height / 2) / among.length;
    const scale = number < 0 ? 1 : Math.max(.5, Math.min(1, (room - 2 * ARROW) / full));
    const y = number < 0 ? below.y : below.y - below.height / 2 - room * (number + .5);
    for (const node of nodes.sort()) {
      taken.set(below, (taken.get(below) ?? 0) + 90);
      at.set(node, { node, x: right + taken.get(below), y, width: width * scale, height: full * scale, scale });
    }
  }
  return at;
}

// The rows of boxes from the lowest to the highest; rows that overlap in height count as one.
function bands(at) {
  const found = [];
  for (const box of d3.sort(at.values(), box => -box.y - box.height / 2)) {
    const top = box.y - box.height / 2, bottom = box.y + box.height / 2, last = found.at(-1);
    if (last && bottom > last.top) { last.boxes.push(box); last.top = Math.min(last.top, top); }
    else found.push({ top, bottom, boxes: [box] });
  }
  return found;
}

// The line of an edge up to its arrowhead, and the arrow's tip. Edges that Python has not drawn bend between the rows, too,
// and pass each at a free place.
function route(e, { at, rows }) {
  if (view.layout.paths[e.name]) { const [line, x, y] = view.layout.paths[e.name]; return { line, x, y }; }
  const a = at.get(e.start), b = at.get(e.end), x = b.x + b.scale * PORT[e.kind], y = b.y + b.height / 2;
  const first = rows.findIndex(row => row.boxes.includes(a)), last = rows.findIndex(row => row.boxes.includes(b));
  const start = a.y - a.height / 2;
  if (first === last) return { line: `M${a.x},${start}C${a.x},${start - ARROW} ${x},${y + 2 * ARROW} ${x},${y + ARROW}`, x, y };
  let line = `M${a.x},${start}V${rows[first].top}`, from = a.x, height = rows[first].top;
  for (let i = first + 1; i <= last; i++) {
    const row = rows[i], to = i === last ? x : free(row, from + (x - from) / (last - i + 1)), end = i === last ? Math.min((height + row.bottom) / 2, row.bottom + ARROW) : row.bottom, middle = (height + end) / 2;
    line += `C${from},${middle} ${to},${middle} ${to},${end}V${i === last ? Math.min(end, y + ARROW) : row.top}`;
    from = to;
    height = row.top;
  }
  return { line, x, y };
}

// The place nearest to x where no box of the row is.
function free(row, x) {
  const clear = x => row.boxes.every(box => Math.abs(box.x - x) >= box.width / 2 + CLEAR - 1e-6);
  const beside = row.boxes.flatMap(box => [box.x - box.width / 2 - CLEAR, box.x + box.width / 2 + CLEAR]);
  return d3.least([x, ...beside].filter(clear), place => Math.abs(place - x));
}

const svg = d3.select("#picture"), canvas = svg.append("g"), [columns, layers, arcs, lines, hits, boxes] = ["columns", "layers", "arcs", "lines", "hits", "boxes"].map(name => canvas.append("g").attr("class", name));
const zoom = d3.zoom().scaleExtent([.1, 4]).filter(event => event.type === "wheel" ? event.ctrlKey || event.metaKey : !event.button)
  .on("zoom", event => canvas.attr("transform", event.transform));
svg.call(zoom).on("dblclick.zoom", null).on("click", event => { if (event.target === svg.node()) pin(null); });
let now = { edges: [], moves: [], paths: null };

// A picture by position scrolls where it would be too small to be read.
const box = svg.node().parentNode;
function fit(least = view === views.union ? 0 : box.clientWidth < 700 ? .9 : .65) {
  const [x0, y0, x1, y1] = layout.box, most = window.innerHeight * .82;
  const scale = Math.max(least, Math.min(2, (box.clientWidth || 700) / (x1 - x0), Math.max(.8, most / (y1 - y0))));
  const width = Math.max(box.clientWidth || 700, least ? scale * (x1 - x0) : 0);
  svg.attr("height", (y1 - y0) * scale).style("width", width > box.clientWidth ? `${width}px` : null);
  svg.call(zoom.transform, d3.zoomIdentity.translate(width / 2 - scale * (x0 + x1) / 2, -y0 * scale).scale(scale));
}

let layout = null;  // of all edges, whichever are shown: nodes stay where they are
function lay() {
  const edges = state.other ? [...own, ...state.other.edges] : own, at = place(edges), [left, top, right, bottom] = view.layout.corners;
  const sizes = edges.filter(e => e.score !== null).map(e => Math.sqrt(e.size)), [low, high] = [d3.min(sizes) ?? 0, d3.max(sizes) ?? 0];
  const weight = e => e.score === null || high <= low ? .5 : (Math.sqrt(e.size) - low) / (high - low);
  layout = { at, rows: bands(at), weight, box: [left - 70, top - (view === views.union ? 15 : 50), Math.max(right, ...[...at.values()].map(p => p.x + p.width / 2)) + 15, bottom + 15] };
}

function draw() {
  const edges = shownEdges(), { at, weight } = layout;
  const kinds = edge => state.kinds.has(edge.kind), paths = widest(cutEdges().filter(kinds)), others = widest(state.other?.edges.filter(kinds) ?? []);
  const read = new Set(edges.filter(moved).map(e => e.end)), written = new Set(edges.map(e => e.start));
  const moves = (view.layout.moves ?? []).map(([node, start, end, attention, line, x, y]) => ({ node, name: `${node}: ${start} → ${end}`, start: node + AT + start, end: node + AT + end, to: end, attention, line, x, y }));
  now = { edges, moves: moves.filter(m => read.has(m.start) && written.has(m.end)), best: paths.best, through: e => (e.status === "new" ? others : paths).through(e) };
  layers.selectAll("text").data(view.layout.labels).join("text").attr("class", "layer").attr("x", layout.box[0] + 8).attr("y", ([, y]) => y + 4).text(([text]) => text);
  const routes = new Map(edges.map(e => [e.name, route(e, layout)])), half = e => 9 * .25 + .99 * (1 + 4 * weight(e));
  const drawn = lines.selectAll("g").data(edges, e => e.name).join(enter => { const g = enter.append("g"); g.append("path"); g.append("path").attr("class", "arrow"); return g; })
    .attr("class", e => `edge ${state.other ? e.status : e.kind + (e.score < 0 ? " negative" : "")}`).attr("data-edge", e => e.name).style("opacity", e => state.other ? .85 : .3 + .7 * weight(e));
  drawn.select("path").attr("d", e => routes.get(e.name).line).attr("stroke-width", e => 1 + 4 * weight(e));
  drawn.select(".arrow").attr("d", e => `M${routes.get(e.name).x},${routes.get(e.name).y}l${half(e)},${ARROW}h${-2 * half(e)}z`);
  hits.selectAll("path").data(edges, e => e.name).join("path").attr("class", "hit").attr("data-edge", e => e.name).attr("d", e => `${routes.get(e.name).line}v${-ARROW}`)
    .on("pointerenter", (event, e) => { light(e); showTip(event, edgeLines(e)); }).on("pointermove", moveTip)
    .on("pointerleave", () => { hideTip(); light(state.pinned); }).on("click", (event, e) => pin(e));
  drawNodes(at, edges);
  drawColumns();
  light(state.pinned);
  count();
}

// The columns of spans, the prompt below them, the answer, and the moves that heads make between them.
function drawColumns() {
  const found = view.layout.columns ?? [], answer = view.layout.answer, [, top, , bottom] = view.layout.corners;
  columns.selectAll("rect").data(found.filter(([, , , folded]) => !folded)).join("rect").attr("x", ([x, width]) => x - width / 2).attr("y", top).attr("width", ([, width]) => width).attr("height", bottom - top).attr("rx", 6);
  const texts = [...found.flatMap(([x, , lines, folded]) => lines.map((text, i) => [text, x, view.layout.axis + 14 * i, i === 0 && !folded])), ...(answer ? [[...answer, true]] : [])];
  columns.selectAll("text").data(texts).join("text").attr("class", ([, , , named]) => named ? "named" : null).attr("x", ([, x]) => x).attr("y", ([, , y]) => y + 4).text(([text]) => text);
  const drawn = arcs.selectAll("g").data(now.moves, m => m.name).join(enter => { const g = enter.append("g").attr("class", "move"); g.append("path"); g.append("path").attr("class", "arrow"); g.append("path").attr("class", "hit"); return g; });
  drawn.attr("data-move", m => m.name).style("opacity", m => m.attention === null ? .7 : .05 + .95 * m.attention)
    .on("pointerenter", (event, m) => { light(m); showTip(event, [m.name, m.attention === null ? "what it reads as key or value, and where it writes" : `${percent(m.attention)} of its attention at ${m.to}`]); }).on("pointermove", moveTip)
    .on("pointerleave", () => { hideTip(); light(state.pinned); }).on("click", (event, m) => pin({ node: m.node }));
  drawn.selectAll("path:not(.arrow)").attr("d", function () { return d3.select(this.parentNode).datum().line; });
  drawn.select(".arrow").attr("d", m => `M${m.x},${m.y}l4,${-ARROW}h-8z`);
}

function drawNodes(at, edges) {
  const used = new Set(edges.flatMap(e => [e.start, e.end])), ports = new Set(edges.map(e => `${e.end}<${e.kind}>`)), pitch = view === views.union ? 19 : 14;
  const nodes = [...at].filter(([key, p]) => used.has(key) || p.node === "logits" || isInput(key)).map(([key, p]) => ({ key, ...p }));
  const made = boxes.selectAll("g.node").data(nodes, d => d.key).join(enter => {
    const g = enter.append("g").attr("tabindex", 0).attr("role", "button");
    g.append("rect").attr("class", "body").attr("rx", 5).attr("x", d => -d.width / d.scale / 2).attr("y", d => -d.height / d.scale / 2).attr("width", d => d.width / d.scale).attr("height", d => d.height / d.scale);
    g.append("text").attr("class", "name").text(d => d.node).attr("dy", d => HEAD.test(d.node) ? -3 : 4);
    const heads = g.filter(d => HEAD.test(d.node));
    ["q", "k", "v"].forEach((c, i) => {
      heads.append("rect").attr("class", "port").attr("data-port", c).attr("x", pitch * (i - 1) - 7).attr("y", 3).attr("width", Math.min(14, pitch - 1)).attr("height", 12).attr("rx", 2);
      heads.append("text").attr("class", "port").attr("x", pitch * (i - 1)).attr("y", 12).text(c);
    });
    return g;
  });
  made.attr("class", d => `node ${HEAD.test(d.node) ? "head" : MLP.test(d.node) ? "mlp" : "end"}${classOf.has(d.node) ? " classed" : ""}`)
    .attr("transform", d => `translate(${d.x},${d.y})scale(${d.scale})`).attr("data-node", d => d.key)
    .attr("aria-label", d => `${d.key}${classOf.has(d.node) ? ", " + classOf.get(d.node) : ""}: ${edges.filter(e => e.end === d.key).length} edges in, ${edges.filter(e => e.start === d.key).length} out`)
    .on("pointerenter", (event, d) => { light(d); showTip(event, nodeLines(d.node, d.key)); }).on("pointermove", moveTip).on("pointerleave", () => { hideTip(); light(state.pinned); })
    .on("focus", (event, d) => light(d)).on("blur", () => light(state.pinned)).on("click", (event, d) => pin(d))
    .on("keydown", (event, d) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(d); } });
  made.select(".body").style("fill", d => classOf.has(d.node) ? tintOf.get(classOf.get(d.node)) : null);
  made.selectAll("rect.port").attr("class", function () { const c = this.dataset.port; return `port ${ports.has(`${d3.select(this.parentNode).datum().key}<${c}>`) ? c : ""}`; });
}

// Light up what belongs to a node (its edges) or an edge (its strongest path), or what a search finds.
function light(what) {
  let edges = new Set(), nodes = new Set();
  if (what?.path) edges = new Set(what.path.map(e => e.name));
  else if (what?.line) edges = new Set(now.edges.filter(e => moved(e) && e.end === what.start || e.start === what.end).map(e => e.name));
  else if (what?.node) edges = new Set(now.edges.filter(e => e.from === what.node || e.to === what.node).map(e => e.name));
  else if (what?.name) edges = new Set((now.through(what)?.edges ?? [what]).map(e => e.name));
  else if (state.found) edges = new Set(now.edges.filter(matches).map(e => e.name));
  const shining = now.edges.filter(e => edges.has(e.name)), read = new Set(shining.filter(moved).map(e => e.end)), written = new Set(shining.map(e => e.start));
  for (const e of shining) nodes.add(e.start).add(e.end);
  for (const [key, { node }] of layout.at) if (what ? node === what.node && !what.line : state.found && node.toLowerCase().includes(state.found)) nodes.add(key);
  svg.classed("dim", edges.size + nodes.size > 0);
  lines.selectAll("g").classed("lit", e => edges.has(e.name)).filter(e => edges.has(e.name)).raise();
  arcs.selectAll("g").classed("lit", m => what?.line ? m.name === what.name : read.has(m.start) && written.has(m.end));
  boxes.selectAll("g.node").classed("lit", d => nodes.has(d.key)).classed("chosen", d => d.node === state.pinned?.node)
    .classed("found", d => state.found !== "" && d.node.toLowerCase().includes(state.found));
}

const matches = e => e.name.toLowerCase().includes(state.found);
function pin(what) { state.pinned = what; light(what); panel(); }

function showTip(event, lines_) { tip.replaceChildren(...lines_.map((text, i) => element(i ? "div" : "strong", text))); moveTip(event); }
function hideTip() { tip.hidden = true; }
function moveTip(event) { tipAt(event.clientX + 14, event.clientY + 14); }

// ------------------------------------------------------------------------------------------------ words

function button(text, act, label) { const made = element("button", text); made.type = "button"; made.onclick = act; if (label) made.setAttribute("aria-label", label); return made; }

function edgeLines(e) {
  const out = [e.name];
  if (e.status !== "kept") out.push({ both: "in both circuits", gone: "only in this circuit", new: `only in ${state.other?.title}` }[e.status]);
  if (e.score !== null) out.push(`${data.measure} ${number(e.score)}`);
  if (e.theirs !== undefined && e.theirs !== null) out.push(`score in ${state.other.title}: ${number(e.theirs)}`);
  if (e.change !== null && e.change !== undefined) out.push(`${data.method.effect} when removed: ${number(e.change)} ${data.method.unit}`);
  if (e.margin !== null && e.margin !== undefined) out.push(`${number(Math.abs(e.margin))} ${data.method.unit} from τ = ${number(data.method.threshold)}`);
  const path = now.through(e);
  if (path) out.push(`strongest path: ${pathText(path)}`);
  return out;
}
const pathText = path => [path.edges[0].from, ...path.edges.map(e => e.to + (e.kind === "plain" ? "" : `<${e.kind}>`) + e.at)].join(" → ");
function nodeLines(node, key) {
  const out = [key];
  if (classOf.has(node)) out.push(`${classOf.get(node)}, ${data.published}`);
  if (effects.has(node)) out.push(`direct effect on the answer: ${number(effects.get(node), 3)} logits`);
  out.push(`${now.edges.filter(e => e.to === node).length} edges in, ${now.edges.filter(e => e.from === node).length} out; click for more`);
  return out;
}

function count() {
  const text = [], n = cutEdges().length, whole = x => x.toLocaleString("en"), cut = state.strongest < own.length;
  document.getElementById("strongest").textContent = `${whole(state.strongest)} of ${whole(own.length)}`;
  text.push(cut ? `the ${whole(state.strongest)} strongest of ${whole(own.length)} ${view.unit} (|${data.measure}| ≥ ${number(own[state.strongest - 1].size, 3)}), ${whole(n)} of them on a path; the slider shows more` : `all ${whole(own.length)} ${view.unit}`);
  const point = view.unit === counted ? measured(n) : undefined;
  if (point?.between) text.push(`${whole(n)} ${counted}: faithfulness about ${percent(point.faithfulness[0])}, between ${point.between.map(p => `${percent(p.faithfulness[0])} with ${p.edges}`).join(" and ")}`);
  else if (point) text.push(`${whole(n)} ${counted}: faithfulness ${interval(point.faithfulness, percent)}`);
  document.getElementById("count").textContent = text.join(" · ");
  drawCurve(point);
  if (state.other) {
    const here = new Set(own.map(e => e.name)), both = state.other.edges.filter(e => here.has(e.name)).length;
    document.getElementById("compared").textContent = `${both} in both, ${own.length - both} only in this circuit, ${state.other.edges.length - both} only in ${state.other.title}`;
  }
}
// The circuit of the n strongest edges on the curve: measured, or on the line between two measured ones.
function measured(n) {
  const points = data.curve.filter(p => p.faithfulness[0] !== null), after = points.findIndex(p => p.edges >= n), high = points[after], low = points[after - 1];
  if (!high || high.edges === n) return high;
  if (!low) return undefined;
  const share = (n - low.edges) / (high.edges - low.edges);
  return { edges: n, faithfulness: [low.faithfulness[0] + share * (high.faithfulness[0] - low.faithfulness[0])], between: [low, high] };
}

function edgeList(title, edges, end) {
  const box = element("div");
  box.append(element("h3", `${title} (${edges.length})`));
  const list = element("ul");
  for (const e of [...edges].sort((a, b) => b.size - a.size)) {
    const item = element("li");
    item.append(button(end(e) + e.at, () => pin(e), e.name), element("span", number(e.score, 3), "number"));
    item.onpointerenter = () => light(e);
    item.onpointerleave = () => light(state.pinned);
    list.append(item);
  }
  box.append(list);
  return box;
}

function pathButton(path) {
  const box = element("div", "", "path");
  box.append(button(pathText(path), () => pin({ path: path.edges, width: path.width })), element("span", ` ${number(path.width, 3)}`, "soft"));
  box.onpointerenter = () => light({ path: path.edges });
  box.onpointerleave = () => light(state.pinned);
  return box;
}

function panel() {
  const box = document.getElementById("panel"), what = state.pinned;
  if (!what) return box.replaceChildren(...overview());
  const back = button("‹ overview", () => pin(null));
  if (what.path) box.replaceChildren(back, element("h3", "A path"), element("p", pathText({ edges: what.path })), element("p", `Its weakest edge has score ${number(what.width)}.`, "soft"), edgeList("Edges", what.path, e => e.name));
  else if (what.name) {
    const [name, ...lines_] = edgeLines(what);
    box.replaceChildren(back, element("h3", name), ...lines_.map(text => element("p", text)), element("p", "", "", button(what.from, () => pin({ node: what.from })), " → ", button(what.to, () => pin({ node: what.to }))));
  } else box.replaceChildren(back, ...nodePanel(what.node));
}

function overview() {
  const out = [element("h3", "How to read it")];
  out.push(element("p", "Edges go up, from the inputs to the logits. Hover or click an edge or a node; Tab and Enter do it, too. Drag to move; Ctrl and the wheel zoom.", "small"));
  const keys = element("p", "", "small");
  const compared = [["both", "in both circuits"], ["gone", "only in this circuit"], ["new", `only in ${state.other?.title}`]];
  for (const [kind, text] of state.other ? compared : KINDS.filter(([kind]) => own.some(e => e.kind === kind))) keys.append(element("span", "", `key ${kind}`), text + "\u2003");
  if (now.moves.length) keys.append(element("span", "", "key move"), "moved by a head's attention\u2003");
  if (!state.other && own.some(e => e.score < 0)) keys.append("dashed: score below 0");
  out.push(keys);
  if (data.published) {
    out.push(element("h3", `Classes of ${data.published}`), element("p", data.source, "soft small"));
    for (const [name, nodes] of Object.entries(data.classes)) {
      const chip = element("span", "", "chip"), line = element("p", "", "small"), here = nodes.filter(n => own.some(e => e.from === n || e.to === n));
      chip.style.background = tintOf.get(name);
      line.append(chip, `${name}: ${here.length} of ${nodes.length}`);
      out.push(line);
    }
  }
  out.push(element("h3", state.other ? "Strongest paths of this circuit" : "Strongest paths"), element("p", `By their weakest edge${now.moves.some(m => m.attention !== null) ? "; heads attend with at least 1 % to what they read" : ""}.`, "soft small"), ...now.best().map(pathButton));
  return out;
}

function nodePanel(node) {
  const out = [element("h3", node)];
  if (classOf.has(node)) out.push(element("p", `${classOf.get(node)} (${data.published})`));
  else if (data.published && HEAD.test(node)) out.push(element("p", `in no class of ${data.published}`, "soft"));
  if (effects.has(node)) out.push(element("p", `Adds ${number(effects.get(node), 3)} logits directly to the difference between correct and wrong answer, on average over the ${data.half} prompts.`));
  if (data.attention[node]) out.push(...attention(node));
  for (const [title, text] of data.features?.[node] ?? []) out.push(element("h3", title), element("p", text, "small"));
  out.push(edgeList("Incoming", now.edges.filter(e => e.to === node), e => e.from + (e.kind === "plain" ? "" : ` → ${e.kind}`)));
  out.push(edgeList("Outgoing", now.edges.filter(e => e.from === node), e => e.to + (e.kind === "plain" ? "" : `<${e.kind}>`)));
  return out;
}

function attention(node) {
  const patterns = data.attention[node], holder = element("div"), choice = element("select");
  patterns.forEach((_, i) => choice.append(new Option(`prompt ${i + 1}`, i)));
  choice.setAttribute("aria-label", "prompt");
  choice.onchange = () => holder.replaceChildren(...heat(node, +choice.value));
  holder.append(...heat(node, 0));
  return [element("h3", "Attention"), element("p", "On clean prompts, in the full model. Rows look at columns; darker is more.", "soft small"), choice, holder];
}

function heat(node, index) {
  const example = data.examples[index], pattern = data.attention[node][index], n = pattern.length, cell = Math.max(5, Math.min(15, Math.floor(250 / n))), left = 78;
  const row = pattern[example.scored], best = d3.range(row.length).sort((a, b) => row[b] - row[a]).slice(0, 3).filter(i => row[i] > 0);
  const text = `From ${JSON.stringify(example.clean[example.scored])}, where the answer is predicted, it looks at ${best.map(i => `${JSON.stringify(example.clean[i])} (${row[i]} %)`).join(", ")}.`;
  const picture = d3.create("svg").attr("class", "heat").attr("role", "img").attr("aria-label", text).attr("viewBox", `0 0 ${left + n * cell + 4} ${left + n * cell + 4}`).attr("width", left + n * cell + 4);
  const cells = pattern.flatMap((r, i) => r.map((p, j) => ({ i, j, p }))).filter(c => c.p > 0);
  picture.selectAll("rect").data(cells).join("rect").attr("x", c => left + c.j * cell).attr("y", c => left + c.i * cell).attr("width", cell - .5).attr("height", cell - .5).attr("opacity", c => .04 + .96 * c.p / 100)
    .append("title").text(c => `${example.clean[c.i]} looks at ${example.clean[c.j]}: ${c.p} %`);
  if (cell >= 9) {
    picture.append("g").selectAll("text").data(example.clean).join("text").attr("x", left - 4).attr("y", (_, i) => left + (i + .75) * cell).attr("text-anchor", "end").text(t => short(t));
    picture.append("g").selectAll("text").data(example.clean).join("text").attr("transform", (_, j) => `translate(${left + (j + .75) * cell},${left - 4}) rotate(-90)`).text(t => short(t));
  }
  return [picture.node(), element("p", text, "small"), ...why(node, index)];
}

function why(node, index) {
  const edges = data.signals[node] ?? [], clean = data.examples[index].clean;
  const line = ([edge, pairs]) => {
    const [query, key, attention, without, added, fewest, terms] = pairs[index];
    const acts = added ? `from ${JSON.stringify(clean[query])} to ${JSON.stringify(clean[key])}, ${attention} % with the edge, ${without} % without. It adds ${number(added, 3)} to the score over those of other keys, 90 % of it along ${fewest} of ${terms} directions.` : "adds nothing here.";
    return element("p", `${edge}: ${acts}`, "small");
  };
  return edges.length ? [element("h3", "Why it attends"), element("p", "What edges into its query and key add where they act most, in the circuit. acdc explain checks by patching whether these directions carry the edge.", "soft small"), ...edges.map(line)] : [];
}
const short = text => { const letters = [...text.trim()]; return letters.length > 12 ? letters.slice(0, 11).join("") + "…" : letters.join(""); };

// ------------------------------------------------------------------------------------------------ curve, examples, log

function drawCurve(point) {
  const holder = document.getElementById("curve"), points = data.curve.filter(p => p.faithfulness[0] !== null);
  if (!holder || !points.length) return;
  const width = 640, height = 300, [left, right, top, bottom] = [56, 12, 10, 44];
  const x = d3.scaleLinear([0, points.at(-1).edges * 1.03], [left, width - right]);
  const low = d3.min(points, p => p.faithfulness[1] ?? p.faithfulness[0]), high = d3.max(points, p => p.faithfulness[2] ?? p.faithfulness[0]);
  const y = d3.scaleLinear([Math.max(-.6, Math.min(0, low)), Math.min(1.6, Math.max(1, high))], [height - bottom, top]).nice().clamp(true);
  const plot = d3.create("svg").attr("class", "plot").attr("viewBox", `0 0 ${width} ${height}`).attr("role", "img")
    .attr("aria-label", "Faithfulness by edges: " + points.map(p => `${p.edges} ${counted} ${interval(p.faithfulness, percent)}`).join("; "));
  plot.append("g").attr("class", "axis").attr("transform", `translate(0,${height - bottom})`).call(d3.axisBottom(x).ticks(8).tickFormat(t => Number.isInteger(t) ? d3.format(",")(t) : ""));
  plot.append("g").attr("class", "axis").attr("transform", `translate(${left},0)`).call(d3.axisLeft(y).ticks(5, "%"));
  for (const level of [0, 1]) plot.append("line").attr("class", "rule").attr("x1", left).attr("x2", width - right).attr("y1", y(level)).attr("y2", y(level));
  plot.append("path").attr("class", "band").attr("d", d3.area().x(p => x(p.edges)).y0(p => y(p.faithfulness[1] ?? p.faithfulness[0])).y1(p => y(p.faithfulness[2] ?? p.faithfulness[0]))(points));
  const line = d3.line(p => x(p.edges), p => y(p.faithfulness[0]));
  plot.append("path").attr("class", "line").attr("d", line(points));
  plot.append("path").attr("class", "line searched").attr("d", line(data.searched.filter(p => p.faithfulness[0] !== null)));
  plot.selectAll("circle.dot").data(points).join("circle").attr("class", "dot").attr("r", 4).attr("cx", p => x(p.edges)).attr("cy", p => y(p.faithfulness[0]))
    .append("title").text(p => `${p.edges} ${counted}: faithfulness ${interval(p.faithfulness, percent)}; ${data.method.metric} ${interval(p.metric, v => number(v))}`);
  if (point) plot.append("circle").attr("class", "now").attr("r", 8).attr("cx", x(point.edges)).attr("cy", y(point.faithfulness[0]));
  plot.append("text").attr("x", (left + width - right) / 2).attr("y", height - 6).attr("text-anchor", "middle").text(`strongest ${counted === "edges" ? "residual edges" : counted} on a path`);
  plot.append("text").attr("transform", `translate(14,${(height - bottom) / 2}) rotate(-90)`).attr("text-anchor", "middle").text("faithfulness");
  holder.replaceChildren(plot.node());
}

const log = document.getElementById("log") ? read("log") : [];
const logState = { found: "", kept: false, by: null, down: false, most: PAGE_OF_LOG };
function drawLog() {
  const body = document.querySelector("#decisions tbody");
  if (!body) return;
  let rows = log.filter(row => (!logState.found || row[0].toLowerCase().includes(logState.found)) && (!logState.kept || row[4]));
  if (logState.by !== null) rows = [...rows].sort((a, b) => (logState.down ? d3.descending : d3.ascending)(a[logState.by], b[logState.by]));
  body.replaceChildren(...rows.slice(0, logState.most).map(([name, change, margin, metric, kept]) => {
    const row = element("tr");
    row.append(element("td", name), ...[change, margin, metric].map(x => element("td", number(x), "number")), element("td", kept ? "kept" : "removed"));
    return row;
  }));
  document.getElementById("logcount").textContent = `${Math.min(rows.length, logState.most).toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  document.getElementById("more").hidden = rows.length <= logState.most;
}

// ------------------------------------------------------------------------------------------------ another circuit

// The other circuit: its edges, what it is called, and what makes a comparison doubtful.
function readOther(text, file) {
  let found;
  try { found = JSON.parse(text); } catch { throw new Error(`${file} is no JSON; choose a circuit.json`); }
  if (!found?.model || !found.task || !found.method || !Array.isArray(found.edges)) throw new Error(`${file} is no circuit; choose a circuit.json`);
  const sizes = m => `${m.n_layers} layers, ${m.n_heads} heads, inputs ${m.inputs}${m.mlp ? "" : ", no MLPs"}`;
  const mine = sizes({ n_layers: data.graph.layers, n_heads: data.graph.heads, inputs: data.graph.inputs, mlp: data.graph.mlp });
  if (sizes(found.model) !== mine) throw new Error(`${file} is of a model of ${sizes(found.model)}; this one has ${mine}`);
  const { task, model, method } = found, options = method.options ?? {}, most = 2 * data.graph.layers + 1;
  const limit = options.faithfulness ? `faithfulness ${options.faithfulness}` : method.threshold !== null ? `τ = ${method.threshold}` : `${options.edges} edges`;
  const doubts = [];
  if (task.name !== data.task) doubts.push(`task ${task.name}, not ${data.task}`);
  if (model.hash !== data.model.hash) doubts.push(model.name === data.model.name ? `other weights of ${model.name}` : `model ${model.name}, not ${data.model.name}`);
  const known = node => data.graph.inputs.includes(node) || (layerOf(node) >= 0 && layerOf(node) <= most);
  const edges = found.edges.filter(e => typeof e.name === "string" && PARTS.test(e.name)).map(e => toEdge([e.name, e.score ?? null, e.change ?? null, null]));
  const strongest = d3.rollup(edges.filter(e => known(e.from) && known(e.to)), same => d3.greatest(same, e => e.size), e => e.name);  // of spans
  return { title: `${task.name} in ${model.name}: ${method.name}, ${limit} (${file})`, edges: [...strongest.values()],
           doubt: doubts.length ? `${file} is of ${doubts.join(" and ")}: only the names of edges are compared.` : "" };
}

// Compared are circuits without spans.
function choose(name) {
  if (view !== views[name]) {
    view = views[name];
    own = view.edges;
    state.strongest = strongest();
    state.pinned = state.pinned?.node ? state.pinned : null;
    lay();
    draw();
    fit();
    panel();
  }
  Object.assign(document.getElementById("slider"), { max: Math.max(1, own.length), value: state.strongest });
  svg.classed("positions", view === views.positions);
  for (const one in views) document.getElementById(`view-${one}`)?.setAttribute("aria-pressed", one === name);
}

function compare(other) {
  if (other) choose("union");
  document.querySelectorAll("#view button").forEach(made => { made.disabled = other !== null; });
  state.other = other;
  state.pinned = null;
  for (const e of document.querySelectorAll(".comparing")) e.hidden = !other;
  document.getElementById("compared").textContent = "";
  document.getElementById("theirs").textContent = other ? `only in ${other.title}` : "";
  svg.classed("compared", other !== null);
  lay();
  draw();
  const now = d3.zoomTransform(svg.node()), corner = now.apply([layout.box[2], layout.box[3]]);
  if (!other || corner[0] > svg.node().clientWidth) fit();  // nodes stay where they are if there is room for the others
  panel();
}

// ------------------------------------------------------------------------------------------------ controls

const on = (id, event, act) => document.getElementById(id)?.addEventListener(event, act);
on("slider", "input", event => { state.strongest = +event.target.value; if (state.pinned && !state.pinned.node) state.pinned = null; draw(); panel(); });
on("search", "input", event => { state.found = event.target.value.trim().toLowerCase(); light(state.pinned); document.getElementById("hits").textContent = state.found ? `${now.edges.filter(matches).length} edges` : ""; });
on("search", "keydown", event => { if (event.key === "Enter") { const e = now.edges.find(matches); if (e) pin([...layout.at.values()].some(p => p.node === event.target.value.trim()) ? { node: event.target.value.trim() } : e); } });
for (const [kind] of KINDS) on(`kind-${kind}`, "change", event => { event.target.checked ? state.kinds.add(kind) : state.kinds.delete(kind); draw(); panel(); });
for (const status of state.statuses) on(`status-${status}`, "change", event => { event.target.checked ? state.statuses.add(status) : state.statuses.delete(status); draw(); panel(); });
on("other", "change", async event => {
  const [file] = event.target.files, said = document.getElementById("compare-error");
  if (!file) return;
  try { said.textContent = ""; const other = readOther(await file.text(), file.name); compare(other); said.textContent = other.doubt; } catch (error) { said.textContent = error.message; compare(null); }
  event.target.value = "";
});
on("stop", "click", () => compare(null));
on("in", "click", () => svg.call(zoom.scaleBy, 1.3));
on("out", "click", () => svg.call(zoom.scaleBy, 1 / 1.3));
on("fit", "click", () => fit());
for (const name in views) on(`view-${name}`, "click", () => choose(name));
document.addEventListener("keydown", event => { if (event.key === "Escape") { hideTip(); pin(null); } });
on("logsearch", "input", event => { logState.found = event.target.value.trim().toLowerCase(); logState.most = PAGE_OF_LOG; drawLog(); });
on("logkept", "change", event => { logState.kept = event.target.checked; logState.most = PAGE_OF_LOG; drawLog(); });
on("more", "click", () => { logState.most += 5 * PAGE_OF_LOG; drawLog(); });
document.querySelectorAll("#decisions th button").forEach((head, i) => head.addEventListener("click", () => {
  logState.down = logState.by === i && !logState.down;
  logState.by = i;
  document.querySelectorAll("#decisions th").forEach((th, j) => th.setAttribute("aria-sort", j === i ? (logState.down ? "descending" : "ascending") : "none"));
  drawLog();
}));
for (const copy of document.querySelectorAll("button.copy")) copy.addEventListener("click", async () => {
  const text = document.getElementById(copy.dataset.of).textContent;
  try { await navigator.clipboard.writeText(text); copy.textContent = "copied"; } catch { getSelection().selectAllChildren(document.getElementById(copy.dataset.of)); copy.textContent = "selected: press Ctrl+C"; }
  setTimeout(() => { copy.textContent = "copy"; }, 2000);
});
let width = box.clientWidth;
new ResizeObserver(() => { if (box.clientWidth !== width) { width = box.clientWidth; fit(); } }).observe(box);
addEventListener("beforeprint", () => { document.querySelectorAll("details").forEach(d => { d.dataset.was = d.open; d.open = true; }); fit(0); });
addEventListener("afterprint", () => { document.querySelectorAll("details").forEach(d => { d.open = d.dataset.was === "true"; }); fit(); });
lay();
choose(view === views.union ? "union" : "positions");
draw();
fit();
panel();
drawLog();
document.documentElement.dataset.drawn = performance.now().toFixed(0);
