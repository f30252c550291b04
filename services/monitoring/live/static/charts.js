"use strict";
// Charts of a job: what is drawn where, in which colours. The points come thinned from the server.
const CHARTS = {
  loss: { train: ["loss", "training"], test: ["test_loss", "test"] },
  accuracy: { train: ["accuracy", "training"], test: ["test_accuracy", "test"], percent: true },
  perplexity: { train: ["perplexity", "training"], test: ["test_perplexity", "test"] },
  speed: { train: ["tokens_per_second", "tokens/s"], or: ["samples_per_second", "samples/s"], zero: true },
};
const HEIGHT = 230;
const drawn = {};
const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function markRecoveries(plot, steps) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = colour("--muted");
  ctx.setLineDash([4, 3]);
  for (const step of steps) {
    const x = Math.round(plot.valToPos(step, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

function options(chart, labels, width, state) {
  const form = (value) => value == null ? "–" : (chart.percent ? percent : number).format(value);
  const axis = { stroke: colour("--muted"), font: "12px system-ui, sans-serif", ticks: { show: false } };
  const lines = { stroke: colour("--line"), width: 1 };
  const styles = [
    { stroke: colour(chart.zero ? "--green" : "--blue"), width: 1.6, points: { show: (plot) => plot.data[0].length < 3, size: 5 } },
    { stroke: colour("--orange"), paths: () => null, points: { show: true, size: 7, fill: colour("--orange") } },
  ];
  return {
    width, height: HEIGHT,
    cursor: { drag: { x: true, y: false }, points: { size: 6 } },
    scales: { x: { time: false }, y: chart.zero ? { range: (plot, low, high) => [0, 1.1 * high || 1] } : {} },
    axes: [
      { ...axis, grid: { show: false }, values: (plot, splits) => splits.map((value) => Number.isInteger(value) ? compact.format(value) : "") },
      { ...axis, grid: lines, size: 58, values: (plot, splits) => splits.map((value) => chart.percent ? percent.format(value) : compact.format(value)) },
    ],
    series: [
      { label: "step", value: (plot, value) => value == null ? "–" : value.toLocaleString("en") },
      ...labels.map((label, index) => ({ label, spanGaps: true, value: (plot, value) => form(value), ...styles[index] })),
    ],
    hooks: { draw: [(plot) => markRecoveries(plot, state.marks)] },
  };
}

function draw(name, curves, marks) {
  const chart = CHARTS[name], figure = document.querySelector(`[data-chart="${name}"]`);
  const train = chart.or && !curves[chart.train[0]] ? chart.or : chart.train;
  const present = [train, chart.test].filter((series) => series && curves[series[0]]);
  figure.hidden = !present.length;
  if (!present.length) return;
  const data = uPlot.join(present.map(([key]) => curves[key]));
  const labels = present.map((series) => series[1]).join();
  const old = drawn[name];
  if (old && old.labels === labels) {
    old.state.marks = marks;
    old.plot.setData(data);
    return;
  }
  const place = figure.querySelector(".plot");
  if (old) old.plot.destroy();
  const state = { marks };
  const made = options(chart, present.map((series) => series[1]), place.clientWidth, state);
  if (present[0] === chart.test) Object.assign(made.series[1], { stroke: colour("--orange") });
  drawn[name] = { labels, state, plot: new uPlot(made, data, place) };
}

let latest = null;

function drawCharts(curves, marks) {
  latest = [curves, marks];
  for (const name of Object.keys(CHARTS)) draw(name, curves, marks);
}

new ResizeObserver(() => {
  for (const name of Object.keys(drawn)) {
    const { plot } = drawn[name], width = plot.root.parentElement.clientWidth;
    if (width && width !== plot.width) plot.setSize({ width, height: HEIGHT });
  }
}).observe(document.getElementById("charts"));

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const name of Object.keys(drawn)) {
    drawn[name].plot.destroy();
    delete drawn[name];
  }
  if (latest) drawCharts(...latest);
});
