"use strict";
// Plotly draws; this decodes the packed values, and connects the controls, the tables and the figures.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const state = { slide: 0, color: "", gene: data.genes[0]?.gene ?? "", view: "both", pair: "" };
const MISSING = 255;
const MANY = 20000; // spots, above which WebGL draws

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function floats(text) {
  return new Float32Array(bytes(text).buffer);
}

// A byte stands for a 254th of the range; 255 is missing.
function unpack(packed) {
  const step = (packed.high - packed.low) / (MISSING - 1);
  return Array.from(bytes(packed.values), (byte) => (byte === MISSING ? null : packed.low + byte * step));
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function shown(value) {
  if (value === null) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(3)).toString() : String(value);
}

// Tables: sorted by a click on a column's name, searched by the first column.
function makeTable(id, rows, searchId, choose) {
  const table = $(id);
  if (!rows.length) return () => {};
  const columns = Object.keys(rows[0]);
  const order = { column: null, ascending: false };
  const head = element("tr", null);
  for (const column of columns) {
    const button = element("button", column.replaceAll("_", " "), { type: "button" });
    button.addEventListener("click", () => {
      order.ascending = order.column === column ? !order.ascending : typeof rows[0][column] === "string";
      order.column = column;
      draw();
    });
    const cell = element("th", null, { scope: "col" });
    cell.append(button);
    head.append(cell);
  }
  const body = element("tbody", null);
  const header = element("thead", null);
  header.append(head);
  table.append(header, body);
  let chosen = null;

  function draw() {
    const wanted = searchId ? $(searchId).value.trim().toUpperCase() : "";
    const found = rows.filter((row) => String(row[columns[0]]).toUpperCase().includes(wanted));
    const { column, ascending } = order;
    if (column !== null) {
      const sign = ascending ? 1 : -1;
      found.sort((a, b) => {
        if (a[column] === null || b[column] === null) return (a[column] === null) - (b[column] === null);
        return sign * (a[column] < b[column] ? -1 : a[column] > b[column] ? 1 : 0);
      });
    }
    for (const [i, cell] of [...head.children].entries()) {
      cell.setAttribute("aria-sort", columns[i] === column ? (ascending ? "ascending" : "descending") : "none");
    }
    body.replaceChildren(...found.map((row) => {
      const line = element("tr", null, row[columns[0]] === chosen ? { class: "chosen" } : {});
      for (const [i, name] of columns.entries()) {
        const cell = element("td", i || !choose ? shown(row[name]) : null);
        if (!i && choose) {
          const button = element("button", row[name], { type: "button" });
          button.addEventListener("click", () => choose(row[name]));
          cell.append(button);
        }
        line.append(cell);
      }
      return line;
    }));
  }
  if (searchId) $(searchId).addEventListener("input", draw);
  draw();
  return (name) => {
    chosen = name;
    draw();
  };
}

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", text, { value })));
}

// The tissue.
// Panels lie side by side, on a phone one above the other.
function frame(slide, number, count, stacked) {
  const suffix = number ? number + 1 : "";
  const gap = 0.06;
  const size = (1 - gap * (count - 1)) / count;
  const start = (stacked ? count - 1 - number : number) * (size + gap);
  const domains = stacked ? [[0, 1], [start, start + size]] : [[start, start + size], [0, 1]];
  const margin = slide.pitch;
  return {
    [`xaxis${suffix}`]: { anchor: `y${suffix}`, domain: domains[0], range: [slide.low[0] - margin, slide.high[0] + margin], visible: false, constrain: "domain" },
    [`yaxis${suffix}`]: { anchor: `x${suffix}`, domain: domains[1], scaleanchor: `x${suffix}`, range: [slide.high[1] + margin, slide.low[1] - margin], visible: false, constrain: "domain" },
  };
}

function markerSize(slide, columns, rows) {
  const box = $("tissue").getBoundingClientRect();
  const [across, down] = [0, 1].map((axis) => (slide.high[axis] - slide.low[axis] + 2 * slide.pitch) / slide.pitch);
  const room = Math.min((0.8 * box.width) / columns / across, (0.85 * box.height) / rows / down);
  return Math.max(2, 0.85 * room);
}

function drawTissue() {
  const slide = data.slides[state.slide];
  const [x, y] = [floats(slide.x), floats(slide.y)];
  const kind = state.color;
  const type = x.length > MANY ? "scattergl" : "scatter";
  const traces = [];
  let panels = 1;
  let note = "";
  const layout = { margin: { l: 0, r: 0, t: 30, b: 0 }, paper_bgcolor: "#fff", plot_bgcolor: "#fff", images: [], annotations: [], hovermode: "closest", legend: { itemsizing: "constant" } };
  const continuous = (values, title, axis, scale) => {
    const suffix = axis ? axis + 1 : "";
    traces.push({
      type, mode: "markers", x, y, xaxis: `x${suffix}`, yaxis: `y${suffix}`, name: title, showlegend: false,
      marker: { color: values, coloraxis: "coloraxis" }, text: values.map((value) => (value === null ? "missing" : value.toFixed(2))),
      hovertemplate: `${title}: %{text}<extra></extra>`,
    });
    layout.coloraxis = scale;
  };
  if (kind === "gene" && state.gene) {
    const packed = slide.values[state.gene];
    const views = (state.view === "both" ? ["measured", "predicted"] : [state.view]).filter((view) => packed[view]);
    const seen = views.length ? views : ["predicted"];
    panels = seen.length;
    const high = Math.max(...["measured", "predicted"].filter((view) => packed[view]).map((view) => packed[view].high)) || 1;
    for (const [number, view] of seen.entries()) {
      continuous(unpack(packed[view]), view, number, { colorscale: "Viridis", cmin: 0, cmax: high, colorbar: { title: { text: "log1p counts" } } });
    }
    const row = data.genes.find((entry) => entry.gene === state.gene);
    note = packed.measured
      ? `${state.gene}: r beyond depth ${shown(row.r_beyond_depth)} of ${shown(row.attainable_r)} attainable; ${row.reliable ? "reliable" : "not reliable"}.`
      : `${state.gene} was not measured on this slide.`;
  } else if (kind === "pair" && state.pair) {
    const packed = slide.responses[state.pair];
    const values = unpack(packed);
    const most = Math.max(Math.abs(packed.low), Math.abs(packed.high)) || 1;
    continuous(values, "change of the receptor", 0, { colorscale: "RdBu", reversescale: true, cmin: -most, cmax: most, colorbar: { title: { text: "log1p counts" } } });
    const row = data.interactions.find((entry) => entry.pair === state.pair);
    note = `${state.pair.replace("|", " → ")}: E ${shown(row.effect)}, ${row.verdict}.`;
  } else if (kind) {
    const group = slide.groups[kind];
    const codes = bytes(group.codes);
    for (const [code, name] of group.names.entries()) {
      const rows = [...codes.keys()].filter((row) => codes[row] === code);
      if (rows.length) {
        traces.push({
          type, mode: "markers", name, x: rows.map((row) => x[row]), y: rows.map((row) => y[row]),
          marker: { color: group.colors[code] }, hovertemplate: "%{fullData.name}<extra></extra>",
        });
      }
    }
    note = `${codes.length.toLocaleString("en")} spots.`;
  }
  const narrow = $("tissue").getBoundingClientRect().width < 600;
  const stacked = narrow && panels > 1;
  $("tissue").style.height = stacked ? "150vw" : "";
  if (narrow && layout.coloraxis) Object.assign(layout.coloraxis.colorbar, { orientation: "h", y: -0.02, yanchor: "top", thickness: 12 });
  if (narrow && layout.coloraxis) layout.margin.b = 60;
  for (const trace of traces) trace.marker.size = markerSize(slide, stacked ? 1 : panels, stacked ? panels : 1);
  for (let number = 0; number < panels; number += 1) {
    Object.assign(layout, frame(slide, number, panels, stacked));
    const suffix = number ? number + 1 : "";
    if (panels > 1) layout.annotations.push({ text: traces[number].name, showarrow: false, xref: `x${suffix} domain`, yref: `y${suffix} domain`, x: 0, y: 1, xanchor: "left", yanchor: "bottom" });
    if (slide.image) {
      layout.images.push({ source: slide.image.source, xref: `x${suffix}`, yref: `y${suffix}`, x: 0, y: 0, sizex: slide.image.width, sizey: slide.image.height, sizing: "stretch", layer: "below", opacity: 0.5, yanchor: "top" });
    }
  }
  $("note").textContent = note;
  for (const part of document.querySelectorAll(".for-gene")) part.hidden = kind !== "gene";
  for (const part of document.querySelectorAll(".for-pair")) part.hidden = kind !== "pair";
  Plotly.react("tissue", traces, layout, { responsive: true, displaylogo: false, displayModeBar: !narrow });
  Plotly.Plots.resize("tissue"); // its height may have changed
}

function drawLollipop() {
  const rows = data.interactions.filter((row) => row.effect !== null).slice(0, 60);
  $("ligands").hidden = !data.interactions.length;
  if (!rows.length) return;
  const colors = rows.map((row) => (row.verdict === "responds" ? "#b35806" : "#888"));
  Plotly.newPlot("lollipop", [{
    type: "scatter", mode: "markers", x: rows.map((row) => row.pair.replace("|", " → ")), y: rows.map((row) => row.effect),
    marker: { color: colors, size: 9 }, error_y: { type: "data", symmetric: false, array: rows.map((row) => Math.max(-row.effect, 0)), arrayminus: rows.map((row) => Math.max(row.effect, 0)), width: 0, color: "#bbb" },
    text: rows.map((row) => row.verdict), hovertemplate: "%{x}: E %{y:.2f}, %{text}<extra></extra>",
  }], { margin: { l: 50, r: 10, t: 10, b: 110 }, yaxis: { title: { text: "effect E" }, range: [-1.05, 1.05] }, xaxis: { tickangle: -60 } }, { responsive: true, displaylogo: false });
  $("lollipop").on("plotly_click", (event) => choosePair(rows[event.points[0].pointIndex].pair));
}

function chooseGene(name) {
  state.gene = name;
  state.color = "gene";
  $("gene-select").value = name;
  $("color-select").value = "gene";
  markGene(name);
  drawTissue();
}

function choosePair(name) {
  markPair(name);
  state.pair = name;
  if (data.slides[state.slide].responses[name]) {
    state.color = "pair";
    $("color-select").value = "pair";
    $("pair-select").value = name;
    drawTissue();
  }
}

function chooseSlide(number) {
  state.slide = number;
  for (const [i, tab] of [...$("tabs").children].entries()) tab.setAttribute("aria-selected", String(i === number));
  drawTissue();
}

const markGene = makeTable("genes", data.genes, "gene-search", chooseGene);
const markPair = makeTable("interactions", data.interactions, "interaction-search", choosePair);
makeTable("quality", data.quality, null, null);
const first = data.slides[0];
const colorings = Object.keys(first.groups).map((name) => [name, name.replace(/^sage_/, "")]);
if (data.genes.length) colorings.push(["gene", "a gene"]);
if (Object.keys(first.responses).length) colorings.push(["pair", "response to a ligand"]);
options($("color-select"), colorings);
options($("gene-select"), data.genes.map((row) => [row.gene, row.gene]));
options($("pair-select"), Object.keys(first.responses).map((pair) => [pair, pair.replace("|", " → ")]));
state.color = colorings[0]?.[0] ?? "";
state.pair = Object.keys(first.responses)[0] ?? "";
for (const [id, name] of [["color-select", "color"], ["view-select", "view"], ["pair-select", "pair"]]) {
  $(id).addEventListener("change", (event) => {
    state[name] = event.target.value;
    drawTissue();
  });
}
$("gene-select").addEventListener("change", (event) => chooseGene(event.target.value));
if (data.slides.length > 1) {
  $("tabs").append(...data.slides.map((slide, number) => {
    const tab = element("button", slide.name, { type: "button", role: "tab" });
    tab.addEventListener("click", () => chooseSlide(number));
    return tab;
  }));
}
drawLollipop();
chooseSlide(0);
