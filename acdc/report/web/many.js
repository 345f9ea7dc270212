// The page of many circuits. Everything it shows comes from the JSON in the page and is set as text, never as HTML.
const data = read("data");
const COLOURS = d3.range(16).map(i => `var(--c${i})`);  // of curves.py, for light and dark pages; 7 with filled marks, 7 with hollow ones
const SHAPES = [d3.symbolCircle, d3.symbolSquare, d3.symbolTriangle, d3.symbolDiamond, d3.symbolCross, d3.symbolStar, d3.symbolWye];
const DASHES = [null, "7 3", "2 3", "9 3 2 3"];
const MEASURE = /^(discovery|held_out)_(model|circuit|ablated)_/;
const state = { alone: null, found: "", by: null, down: false, all: false };

// ------------------------------------------------------------------------------------------------ plots

function scales(panel, width, height, [left, right, top, bottom]) {
  const points = panel.lines.flatMap(line => line.points);
  const counts = (low, high, range) => d3.scaleSymlog([low, high], range).constant(.5);
  const ticks = ([low, high]) => [0, ...d3.range(7).flatMap(k => [1, 2, 5].map(d => d * 10 ** k))].filter(t => t >= low && t <= high);
  const xs = d3.extent(points, p => p.x), ys = [d3.min(points, p => p.low ?? p.y), d3.max(points, p => p.high ?? p.y)];
  const across = [left, width - right], up = [height - bottom, top];
  if (panel.kind === "roc") return { x: d3.scaleLinear([0, 1], across), y: d3.scaleLinear([0, 1], up) };
  if (panel.kind === "thresholds") {
    const y = counts(Math.max(0, ys[0] * .8), ys[1] * 1.1, up), x = xs[0] > 0 ? d3.scaleLog([xs[0] * .9, xs[1] * 1.1], across) : d3.scaleSymlog(xs, across).constant(1e-3);
    return { x, y, yTicks: ticks(y.domain()) };
  }
  const x = counts(xs[0] * .95, xs[1] * 1.05, across), [lowest, highest] = panel.limits ?? [-Infinity, Infinity];
  const low = Math.max(lowest, Math.min(ys[0], ...panel.levels)), high = Math.min(highest, Math.max(ys[1], ...panel.levels));
  return { x, y: d3.scaleLinear([low, high], up).nice().clamp(true), xTicks: ticks(x.domain()) };
}

const symbol = (path, i) => path.attr("d", d3.symbol(SHAPES[i % SHAPES.length], 52)).attr("class", Math.floor(i / SHAPES.length) % 2 ? "hollow" : "filled");

function plot(panel) {
  const width = 460, height = 330, margins = [62, 14, 28, 46], [left, right, top, bottom] = margins, { x, y, xTicks, yTicks } = scales(panel, width, height, margins);
  const svg = d3.create("svg").attr("class", "plot").attr("viewBox", `0 0 ${width} ${height}`).attr("role", "group").attr("aria-label", `${panel.title}: ${panel.x} against ${panel.y}`);
  const horizontal = d3.axisBottom(x), vertical = d3.axisLeft(y).ticks(6);
  if (xTicks) horizontal.tickValues(xTicks).tickFormat(d3.format(",")); else horizontal.ticks(5, panel.kind === "roc" ? undefined : "~g");
  if (yTicks) vertical.tickValues(yTicks).tickFormat(d3.format(","));
  svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - bottom})`).call(horizontal);
  svg.append("g").attr("class", "axis").attr("transform", `translate(${left},0)`).call(vertical);
  svg.append("text").attr("x", width / 2).attr("y", 16).attr("text-anchor", "middle").attr("font-weight", "bold").text(panel.title);
  svg.append("text").attr("x", (left + width - right) / 2).attr("y", height - 8).attr("text-anchor", "middle").text(panel.x + (panel.kind === "roc" ? "" : " (log scale)"));
  svg.append("text").attr("transform", `translate(14,${(height - bottom + top) / 2}) rotate(-90)`).attr("text-anchor", "middle").text(panel.y + (panel.kind === "thresholds" ? " (log scale)" : ""));
  for (const level of panel.levels) svg.append("line").attr("class", "rule").attr("x1", left).attr("x2", width - right).attr("y1", y(level)).attr("y2", y(level));
  if (panel.kind === "roc") svg.append("line").attr("class", "rule").attr("x1", x(0)).attr("x2", x(1)).attr("y1", y(0)).attr("y2", y(1));
  for (const line of panel.lines) {
    const i = data.labels.indexOf(line.label), colour = COLOURS[i % COLOURS.length];
    const group = svg.append("g").attr("data-line", line.label).style("color", colour);
    if (line.points.some(p => p.low !== null)) group.append("path").attr("fill", "currentColor").attr("opacity", .13).attr("d", d3.area().x(p => x(p.x)).y0(p => y(p.low ?? p.y)).y1(p => y(p.high ?? p.y))(line.points));
    group.append("path").attr("fill", "none").attr("stroke", "currentColor").attr("stroke-width", 2).attr("stroke-dasharray", DASHES[Math.floor(i / COLOURS.length) % DASHES.length]).attr("d", d3.line(p => x(p.x), p => y(p.y))(line.points));
    const links = group.selectAll("a").data(line.points.filter(p => p.row >= 0)).join("a")
      .attr("href", p => data.links[p.row]).attr("aria-label", p => `${line.label}: ${panel.x} ${number(p.x)}, ${panel.y} ${number(p.y)}`)
      .on("pointerenter focus", (event, p) => { mark(p.row); show(event, panel, line, p); }).on("pointerleave blur", () => { mark(null); tip.hidden = true; });
    links.append("path").call(symbol, i).attr("transform", p => `translate(${x(p.x)},${y(p.y)})`);
  }
  return svg.node();
}

function show(event, panel, line, p) {
  const interval = p.low === null ? "" : ` [${number(p.low)}, ${number(p.high)}]`;
  const name = data.columns.includes("run") ? data.rows[p.row][data.columns.indexOf("run")] : line.label;
  tip.replaceChildren(element("strong", String(name)), element("div", `${panel.x}: ${number(p.x)}`), element("div", `${panel.y}: ${number(p.y)}${interval}`));
  const at = event.target.getBoundingClientRect();
  tipAt(at.right + 8, at.bottom + 8);
}

function mark(row) { document.querySelectorAll("#table tbody tr").forEach(tr => tr.classList.toggle("marked", row !== null && +tr.dataset.row === row)); }

function legend() {
  const box = document.getElementById("legend");
  if (data.labels.length < 2) return;
  data.labels.forEach((label, i) => {
    const button = element("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    const key = d3.create("svg").attr("width", 30).attr("height", 12).attr("aria-hidden", "true").style("color", COLOURS[i % COLOURS.length]);
    key.append("line").attr("x2", 30).attr("y1", 6).attr("y2", 6).attr("stroke", "currentColor").attr("stroke-width", 2).attr("stroke-dasharray", DASHES[Math.floor(i / COLOURS.length) % DASHES.length]);
    key.append("path").call(symbol, i).attr("transform", "translate(15,6)");
    button.append(key.node(), " " + label);
    button.onclick = () => {
      state.alone = state.alone === label ? null : label;
      box.querySelectorAll("button").forEach((b, j) => b.setAttribute("aria-pressed", String(state.alone === data.labels[j])));
      document.querySelectorAll("[data-line]").forEach(g => { g.style.display = state.alone === null || g.dataset.line === state.alone ? "" : "none"; });
    };
    box.append(button);
  });
}

// ------------------------------------------------------------------------------------------------ table

function table() {
  const columns = data.columns.map((name, i) => ({ name, i })).filter(c => state.all || !MEASURE.test(c.name));
  const head = element("tr");
  for (const c of columns) {
    const th = element("th"), button = element("button", c.name);
    button.type = "button";
    button.onclick = () => { state.down = state.by === c.i && !state.down; state.by = c.i; table(); };
    th.setAttribute("aria-sort", state.by === c.i ? (state.down ? "descending" : "ascending") : "none");
    th.append(button);
    head.append(th);
  }
  document.querySelector("#table thead").replaceChildren(head);
  let rows = data.rows.map((values, i) => ({ values, i })).filter(r => !state.found || r.values.some(v => v !== null && String(v).toLowerCase().includes(state.found)));
  if (state.by !== null) {
    const given = rows.filter(r => r.values[state.by] !== null), none = rows.filter(r => r.values[state.by] === null);
    rows = [...given.sort((a, b) => (state.down ? d3.descending : d3.ascending)(a.values[state.by], b.values[state.by])), ...none];
  }
  document.querySelector("#table tbody").replaceChildren(...rows.map(({ values, i }) => {
    const row = element("tr");
    row.dataset.row = i;
    columns.forEach((c, j) => {
      const value = values[c.i], cell = element("td", "", typeof value === "number" ? "number" : "");
      cell.dataset.name = c.name;  // shown where the table is narrow
      if (j === 0 && data.links[i]) { const link = element("a", number(value)); link.href = data.links[i]; cell.append(link); } else cell.textContent = number(value);
      row.append(cell);
    });
    return row;
  }));
  document.getElementById("shown").textContent = `${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")}`;
}

document.getElementById("search").addEventListener("input", event => { state.found = event.target.value.trim().toLowerCase(); table(); });
document.getElementById("measures").addEventListener("change", event => { state.all = event.target.checked; table(); });
legend();
document.getElementById("plots").append(...data.panels.map(plot));
table();
document.documentElement.dataset.drawn = performance.now().toFixed(0);
