
"use strict";
// Everything that a file or a model wrote reaches the page through textContent, and nothing through markup.
const { runs, book } = JSON.parse(document.getElementById("data").textContent);
const run = runs[0];
const $ = (selector) => document.querySelector(selector);

// ------------------------------------------------------------------------------------------------------- small things

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((it) => it !== null && it !== undefined && it !== false));
  return node;
}
const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** Three digits that count; more only before the point. */
function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size && (size < 1e-4 || size >= 1e7)) return value.toExponential(1).replace("-", "−");
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : size >= 0.1 ? 3 : size ? 4 : 0;
  return value.toLocaleString("en", { maximumFractionDigits: digits }).replace("-", "−");
}
const signed = (value, digits) => (value > 0 ? "+" : "") + value.toFixed(digits).replace("-", "−");
function bytes(count) {
  const unit = ["B", "kB", "MB", "GB", "TB"];
  const power = count ? Math.min(4, Math.floor(Math.log10(count) / 3)) : 0;
  return `${number(count / 1000 ** power)} ${unit[power]}`;
}
function duration(seconds) {
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(0)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
const mean = (values) => values.reduce((sum, it) => sum + it, 0) / values.length;
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** A row of buttons of which one is pressed. */
function segmented(label, options, chosen, choose) {
  const buttons = options.map(([value, text]) =>
    el("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => press(value) }, text));
  function press(value) {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(options[i][0] === value)));
    choose(value);
  }
  return el("div", { class: "segmented", role: "group", "aria-label": label }, buttons);
}

// ----------------------------------------------------------------------------------------------------------- overview

function overview() {
  const { config, stages } = run;
  const facts = [config.name, config.method, config.model && config.model.path, plural(stages.length, "stage")];
  if (config.seed !== undefined) facts.push(`seed ${config.seed}`);
  $("#overview .lead").append(facts.filter(Boolean).join(" · "));
  $("#overview .tiles").append(...stages.map(tile));
}

function tile(stage) {
  const known = (name) => (stage.metrics[name] || []).filter((it) => it !== null);
  const ends = (name) => {
    const values = known(name);
    const few = Math.max(1, Math.round(values.length / 10));
    return values.length ? [mean(values.slice(0, few)), mean(values.slice(-few))] : null;
  };
  const done = stage.steps.length ? stage.steps[stage.steps.length - 1] : 0;
  const main = ends("reward") ? "reward" : "loss";
  const pairs = [["accuracy", "rewards/accuracy/mean"], ["format", "rewards/format/mean"], ["KL", "kl"],
    ["entropy", "entropy"], ["length", "completions/mean_length"]];
  const seconds = known("time/step").reduce((sum, it) => sum + it, 0) * stage.every;
  const rows = pairs.filter(([, name]) => ends(name)).map(([title, name]) => [title, ends(name).map(number).join(" → ")]);
  if (seconds) rows.push(["time of steps", duration(seconds)]);
  return el("article", { class: "tile" },
    el("h3", {}, stage.name, el("span", {}, `${done.toLocaleString("en")} of ${plural(stage.planned, "step")}`)),
    ends(main) && el("div", { class: "big", title: "means of the first and the last tenth of the steps" },
      ends(main)[1].toFixed(2), el("small", {}, `${main}, from ${ends(main)[0].toFixed(2)}`)),
    el("div", { class: "progress" }, bar(done / Math.max(1, stage.planned))),
    el("dl", { class: "pairs" }, rows.map(([title, value]) => [el("dt", {}, title), el("dd", {}, value)])));
}

function bar(share) {
  const fill = el("i");
  fill.style.width = `${Math.min(100, 100 * share)}%`;
  return fill;
}

// ------------------------------------------------------------------------------------------------------------- curves

// Heading, then title, unit and what is drawn: a name, or a pattern whose group names the curve.
const PANELS = [
  ["What it earns", [
    ["Reward", "", [["reward", "all"], /^reward\/(.+)$/]],
    ["Parts of the reward", "", [/^rewards\/(.+)\/mean$/]],
    ["Held-out reward", "", [/^held_out\/(.+)\/reward$/]],
  ]],
  ["How it changes", [
    ["KL to the reference", "nats", [["kl", "KL"]]],
    ["Entropy", "nats", [["entropy", "entropy"]]],
    ["Length of completions", "tokens", [/^completions\/(.+)_length$/]],
    ["Reasons", "share of completions", [/^parse\/(.+)$/]],
    ["Zero variance", "share", [["frac_reward_zero_std", "groups of one reward"], ["completions/clipped_ratio", "completions cut off"]]],
    ["Loss", "", [["loss", "loss"]]],
    ["Gradient norm", "", [["grad_norm", "before clipping"]]],
    ["Learning rate", "", [["learning_rate", "rate"]]],
    ["Clipped ratios", "share", [/^clip_ratio\/(.+)$/]],
    ["Sampler against trainer", "nats", [/^sampling\/logp_difference\/(.+)$/]],
  ]],
  ["What it costs", [
    ["Padding", "share wasted", [/^padding\/(.+)_waste$/]],
    ["Time", "seconds", [/^time\/(.+)$/]],
    ["Speed", "tokens a second", [["tokens_per_second", "all"], /^tokens_per_second\/(.+)$/]],
    ["Tokens of a step", "", [["num_tokens", "read"], ["learnt_tokens", "learnt"]]],
  ]],
];
const MOST = 6; // curves of a panel
const EXACT = /^learning_rate$/; // nothing to smooth
const charts = [];
let smoothing = 0.8;

const names = [...new Set(runs.flatMap((it) => it.stages.flatMap((stage) => Object.keys(stage.metrics))))];

const lastStep = (stage) => (stage.steps.length ? stage.steps[stage.steps.length - 1] : 0);
// Runs of the same stages are laid side by side stage by stage, other ones from their first step on.
const longest = runs.reduce((most, it) => (it.stages.length > most.stages.length ? it : most));
const aligned = runs.every((it) => it.stages.every((stage, i) => stage.name === longest.stages[i].name));
const spans = runs.map((it) => it.stages.map((stage, i) =>
  (aligned ? Math.max(...runs.filter((other) => other.stages[i]).map((other) => lastStep(other.stages[i]))) : lastStep(stage))));
/** What lies before each stage of a run, on an axis on which stages follow each other. */
const offsets = spans.map((list) => list.map((_, i) => list.slice(0, i).reduce((sum, it) => sum + it, 0)));
const END = Math.max(1, ...spans.map((list) => list.reduce((sum, it) => sum + it, 0)));

function curve(name, label, number_) {
  let segments = runs[number_].stages.map((stage, i) => {
    const values = stage.metrics[name] || [];
    const places = stage.steps.map((_, k) => k).filter((k) => values[k] !== null && values[k] !== undefined);
    const sparse = places.length < stage.steps.length / 2;
    return { x: places.map((k) => offsets[number_][i] + stage.steps[k]), y: places.map((k) => values[k]), sparse };
  });
  if (segments.every((it) => it.sparse)) segments = [{ x: segments.flatMap((it) => it.x), y: segments.flatMap((it) => it.y), sparse: true }];
  return { label, run: number_, exact: EXACT.test(name), segments: segments.filter((it) => it.x.length) };
}

/** Panels of a single run hold several metrics; those of compared runs hold one metric, and a curve for each run. */
function panels() {
  const used = new Set();
  const found = PANELS.map(([heading, list]) => [heading, list.flatMap(([title, unit, wanted]) => {
    const lines = wanted.flatMap((it) =>
      it instanceof RegExp ? names.filter((name) => it.test(name)).map((name) => [name, name.match(it)[1].replaceAll("_", " ")])
        : names.includes(it[0]) ? [it] : []);
    lines.forEach(([name]) => used.add(name));
    if (runs.length === 1) return lines.length ? [{ title, unit, lines: lines.map(([name, label]) => curve(name, label, 0)) }] : [];
    return lines.map(([name, label]) => ({
      title: lines.length > 1 ? `${title}: ${label}` : title, unit,
      lines: runs.map((it, i) => curve(name, it.label, i)),
    }));
  })]);
  const others = names.filter((name) => !used.has(name) && !/^held_out\//.test(name)).sort();
  found.push(["Further", others.map((name) => ({ title: name, unit: "", lines: runs.map((it, i) => curve(name, runs.length > 1 ? it.label : "", i)) }))]);
  return found.filter(([, list]) => list.length);
}

/** Exponential mean without the pull of its start; each stage anew. */
function smoothed({ x, y }, weight) {
  let sum = 0, mass = 0;
  return { x, y: y.map((value) => { sum = weight * sum + (1 - weight) * value; mass = weight * mass + 1 - weight; return sum / mass; }) };
}

/** At most one point a pixel: the mean of those that would lie on it. */
function thinned({ x, y }, toPixel, width) {
  if (x.length <= width) return { x, y };
  const out = { x: [], y: [] };
  for (let start = 0; start < x.length;) {
    const pixel = Math.round(toPixel(x[start]));
    let end = start, sum = 0;
    while (end < x.length && Math.round(toPixel(x[end])) === pixel) sum += y[end++];
    out.x.push(x[start]);
    out.y.push(sum / (end - start));
    start = end;
  }
  return out;
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((it) => it * power).find((it) => it >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}

/** Where a place on the common axis lies: the stage and its step. */
function placeOf(x) {
  const before = offsets[0];
  let i = before.length - 1;
  while (i > 0 && before[i] >= x) i--;
  const stage = run.stages[i];
  const to = x - before[i];
  const span = stage.every > 1 ? `steps ${Math.max(1, to - stage.every + 1)}–${to}` : `step ${to}`;
  return run.stages.length > 1 ? `${stage.name}, ${span}` : span;
}

function chart(panel) {
  const lines = panel.lines.filter((it) => it.segments.length).slice(0, MOST);
  if (panel.lines.length > MOST) {
    const weight = (it) => mean(it.segments.flatMap((part) => part.y));
    lines.splice(0, MOST, ...panel.lines.filter((it) => it.segments.length).sort((a, b) => weight(b) - weight(a)).slice(0, MOST));
  }
  const picture = svg("svg", { tabindex: 0, role: "img" });
  const where = el("small", {}, panel.unit);
  const values = lines.map((it, i) => ({ line: it, value: el("b"), entry: null, colour: `var(--s${runs.length > 1 ? it.run % 8 : i})` }));
  const legend = el("div", { class: "legend" }, values.map((it) =>
    (it.entry = el("span", { class: `d${runs.length > 1 ? it.line.run % 4 : 0}`, "--c": it.colour },
      el("i"), it.line.label && `${it.line.label} `, it.value))));
  const dropped = panel.lines.length - lines.length;
  if (runs.length === 1 && dropped > 0) legend.append(el("span", {}, `and ${dropped} rarer`));
  const wide = el("button", { type: "button", "aria-label": `Enlarge ${panel.title}`, "aria-pressed": "false", onclick: () => {
    wide.setAttribute("aria-pressed", String(node.classList.toggle("wide")));
  } }, "⤢");
  const node = el("article", { class: "chart" }, el("header", {}, el("h4", {}, panel.title, where), wide), legend, picture);
  const self = { node, draw, point, seen: false };
  let cross = null, toPixel = (x) => x, width = 0, drawn = [];

  function draw() {
    width = picture.clientWidth;
    const height = picture.clientHeight, right = 8, top = run.stages.length > 1 ? 18 : 8, bottom = 20;
    if (!width) return;
    drawn = values.map(({ line }) => line.segments.map((part) => (
      { raw: part, line: smoothing && !part.sparse && !line.exact ? smoothed(part, smoothing) : part })));
    let low = Infinity, high = -Infinity;
    for (const part of drawn.flat()) for (const y of part.raw.y) { if (y < low) low = y; if (y > high) high = y; }
    if (low >= 0 && (low < 0.35 * high || high <= 1)) low = 0;
    if (!(high > low)) high = low + (Math.abs(low) || 1);
    high += 0.04 * (high - low);
    const marks = ticks(low, high, height > 200 ? 7 : 4);
    const left = 12 + 6.3 * Math.max(3, ...marks.map((it) => number(it).length));
    toPixel = (x) => left + ((x - 1) / Math.max(1, END - 1)) * (width - left - right);
    const toHeight = (y) => top + ((high - y) / (high - low)) * (height - top - bottom);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [...stageMarks(toPixel, top, height - bottom, width - right)];
    for (const y of marks) {
      parts.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: toHeight(y), y2: toHeight(y) }),
        svg("text", { class: "axis", x: left - 7, y: toHeight(y) + 3.5, "text-anchor": "end" }, number(y)));
    }
    for (const x of ticks(1, END, Math.max(3, Math.floor(width / 90))).filter(Number.isInteger)) {
      parts.push(svg("text", { class: "axis", x: toPixel(x), y: height - 5, "text-anchor": "middle" }, x.toLocaleString("en")));
    }
    const path = (points) => points.x.map((x, i) => `${i ? "L" : "M"}${toPixel(x).toFixed(1)} ${toHeight(points.y[i]).toFixed(1)}`).join("");
    values.forEach(({ line, colour }, i) => {
      const group = svg("g", { class: `d${runs.length > 1 ? line.run % 4 : 0}`, "--c": colour });
      for (const part of drawn[i]) {
        if (part.line !== part.raw) group.append(svg("path", { class: "raw", d: path(thinned(part.raw, toPixel, width)) }));
        group.append(svg("path", { class: "line", d: path(thinned(part.line, toPixel, width)) }));
        if (part.raw.sparse) part.raw.x.forEach((x, k) => group.append(svg("circle", { class: "dot", r: 3, cx: toPixel(x), cy: toHeight(part.raw.y[k]) })));
      }
      parts.push(group);
    });
    cross = svg("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" });
    picture.replaceChildren(...parts, cross);
    point(cursor);
  }

  /** Shows the values at a place of the axis, or the last ones. */
  function point(x) {
    if (!cross) return;
    const said = [];
    values.forEach(({ line, value }, i) => {
      const xs = line.segments.flatMap((it) => it.x);
      if (!xs.length) return;
      const at = x === null ? xs.length - 1 : nearest(xs, x);
      const y = drawn[i].flatMap((it) => it.line.y)[at];
      const raw = line.segments.flatMap((it) => it.y)[at];
      value.textContent = x !== null && y !== raw ? `${number(y)} (${number(raw)})` : number(y);
      said.push(`${line.label} ${value.textContent}`);
    });
    where.textContent = x === null ? panel.unit : placeOf(x);
    cross.setAttribute("visibility", x === null ? "hidden" : "visible");
    if (x !== null) { cross.setAttribute("x1", toPixel(x)); cross.setAttribute("x2", toPixel(x)); }
    picture.setAttribute("aria-label", `${panel.title}${x === null ? "" : `, ${placeOf(x)}`}: ${said.join(", ")}`);
  }

  const all = [...new Set(lines.flatMap((it) => it.segments.flatMap((part) => part.x)))].sort((a, b) => a - b);
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const share = (event.clientX - box.left - toPixel(1)) / Math.max(1, toPixel(END) - toPixel(1));
    if (all.length) moveTo(all[nearest(all, 1 + share * (END - 1))]);
  });
  picture.addEventListener("pointerleave", () => moveTo(null));
  picture.addEventListener("blur", () => moveTo(null));
  picture.addEventListener("keydown", (event) => {
    const now = cursor === null ? all.length - 1 : nearest(all, cursor);
    const jump = Math.max(1, Math.round(all.length / 20));
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, PageUp: now - jump, PageDown: now + jump, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || !all.length) return;
    event.preventDefault();
    moveTo(all[Math.max(0, Math.min(all.length - 1, to))]);
  });
  return self;
}

function stageMarks(toPixel, top, bottom, right) {
  if (run.stages.length < 2) return [];
  return offsets[0].flatMap((before, i) => {
    const stage = run.stages[i];
    if (!spans[0][i]) return [];
    const x1 = i ? toPixel(before + 0.5) : toPixel(1), x2 = Math.min(right, toPixel(before + spans[0][i] + 0.5));
    const marks = i % 2 ? [svg("rect", { class: "band", x: x1, y: top, width: Math.max(0, x2 - x1), height: bottom - top })] : [];
    if (i) marks.push(svg("line", { class: "bound", x1, x2: x1, y1: top - 12, y2: bottom }));
    const room = Math.floor((x2 - x1 - 6) / 6);
    const title = stage.name.length <= room ? stage.name : `${stage.name.slice(0, Math.max(0, room - 1))}…`;
    return room > 2 ? [...marks, svg("text", { class: "axis", x: x1 + 4, y: top - 5 }, title)] : marks;
  });
}

let cursor = null, moving = false;
function moveTo(x) {
  if (x === cursor) return;
  cursor = x;
  if (moving) return;
  moving = true;
  requestAnimationFrame(() => { moving = false; charts.filter((it) => it.seen).forEach((it) => it.point(cursor)); });
}

function curves() {
  runs.forEach((it) => (it.label = runs.filter((other) => other.name === it.name).length > 1 ? it.path : it.name));
  const range = $("#smoothing");
  const shown = $("#curves output");
  const notes = [];
  const binned = run.stages.filter((it) => it.every > 1);
  if (binned.length) notes.push(`A point stands for several steps: ${binned.map((it) => `${it.every} in ${it.name}`).join(", ")}.`);
  if (runs.length > 1) {
    notes.push(aligned ? "Stages begin side by side." : `The runs have other stages, and begin side by side; those marked are of ${run.label}.`);
    $("#curves .runs").append(...runs.map((it, i) => el("span", { class: `d${i % 4}`, "--c": `var(--s${i % 8})` }, el("i"), it.label)));
  }
  $("#curves > .note").append(notes.join(" "));
  const eyes = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const it = charts.find((chart) => chart.node === entry.target);
    it.seen = entry.isIntersecting;
    if (it.seen) it.draw();
  }), { rootMargin: "200px" });
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => {
    const it = charts.find((chart) => chart.node === entry.target);
    if (it.seen) it.draw();
  }));
  for (const [heading, list] of panels()) {
    const made = list.map(chart);
    charts.push(...made);
    $("#curves").append(el("h3", {}, heading), el("div", { class: "charts" }, made.map((it) => it.node)));
    made.forEach((it) => { eyes.observe(it.node); sizes.observe(it.node); });
  }
  if (!charts.length) $("#curves").append(el("p", { class: "empty" }, "No step has been written so far."));
  const smooth = () => {
    smoothing = Number(range.value);
    shown.textContent = smoothing.toFixed(2);
    charts.filter((it) => it.seen).forEach((it) => it.draw());
  };
  range.addEventListener("input", smooth);
  smooth();
}

// --------------------------------------------------------------------------------------------------------- forgetting

const MEASURES = [["reward", "Reward"], ["accuracy", "Accuracy"], ["format", "Format"], ["passed", "Pass rate"], ["greedy", "Greedy reward"]];

function forgetting() {
  const measured = runs.filter((it) => it.matrix.times.length);
  if (!measured.length) { $("#forgetting").remove(); return; }
  $("#forgetting .note").append("Held-out rows of each stage, after each stage: ± half the 95% interval of the mean, and the difference"
    + " from the first measurement, which the shade shows. A frame marks the rows of the stage that was trained. ▼: below the best"
    + " earlier measurement beyond chance.");
  const tables = el("div");
  const show = (name) => tables.replaceChildren(...measured.flatMap((it) =>
    [runs.length > 1 && el("h3", {}, it.label), el("div", { class: "scroll" }, matrixTable(it.matrix, name))].filter(Boolean)));
  $("#forgetting .tools").append(segmented("Measure", MEASURES, "reward", show));
  $("#forgetting").append(tables);
  show("reward");
}

function matrixTable({ times, names: sets, cells }, measure) {
  const first = sets.map((_, k) => cells.map((row) => row[k]).find((cell) => cell && cell[measure] !== null));
  const differences = cells.flatMap((row) => row.map((cell, k) => (cell && cell[measure] !== null ? cell[measure] - first[k][measure] : 0)));
  const largest = Math.max(1e-9, ...differences.map(Math.abs));
  const body = times.map(([stage, step], i) => el("tr", {}, el("th", { scope: "row" }, stage ? `${stage}, step ${step}` : "before"),
    cells[i].map((cell, k) => {
      if (!cell || cell[measure] === null) return el("td", { class: "none" }, "–");
      const change = cell[measure] - first[k][measure];
      const shade = `color-mix(in srgb, var(${change >= 0 ? "--good" : "--bad"}) ${Math.round((34 * Math.abs(change)) / largest)}%, var(--surface))`;
      return el("td", { class: stage === sets[k] ? "own" : "", "--cell": shade },
        el("b", {}, cell[measure].toFixed(3)), measure === "reward" && el("small", {}, `± ${cell.half.toFixed(3)}`),
        el("div", {}, cell === first[k] ? plural(cell.rows, "row") : signed(change, 3),
          measure === "reward" && cell.fallen !== null && el("span", { class: "fell" }, `  ▼ from ${cell.fallen.toFixed(3)}`)));
    })));
  return el("table", { class: "matrix" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "after"), sets.map((it) => el("th", { scope: "col" }, it)))),
    el("tbody", {}, body));
}

// --------------------------------------------------------------------------------------------------------------- book

const PAGE = 10;
const ORDERS = {
  trained: ["as trained", (a, b) => a.at - b.at],
  low: ["reward, low first", (a, b) => a.mean - b.mean || a.at - b.at],
  high: ["reward, high first", (a, b) => b.mean - a.mean || a.at - b.at],
  spread: ["spread, wide first", (a, b) => b.spread - a.spread || a.at - b.at],
};
const filter = { stage: new Set(), task: new Set(), kind: new Set(), reason: "", steps: [null, null], reward: [null, null], words: "", order: "trained" };
let groups = [], found = [], pageNumber = 0, shading = "ratio";

function prepare() {
  groups = book.groups.map((it, at) => {
    const rewards = it.said.map((said) => said.reward);
    it.said.forEach((said) => (said.text = said.text === undefined ? said.tokens.join("") : said.text));
    return { ...it, at, stageName: run.stages[it.stage].name, mean: mean(rewards), spread: Math.max(...rewards) - Math.min(...rewards),
      words: [it.id, it.prompt, it.solution, ...it.said.map((said) => said.text)].join("\n").toLowerCase() };
  });
}

const within = (value, [low, high]) => (low === null || value >= low) && (high === null || value <= high);
const reasonsOf = (said) => Object.values(said.reasons);
function wanted(said) {
  const why = reasonsOf(said);
  return within(said.reward, filter.reward) && (!filter.reason || (filter.reason === "none" ? !why.length : why.includes(filter.reason.slice(1))));
}
const pressed = (set, value) => !set.size || set.has(value);

function search() {
  found = groups.filter((it) => pressed(filter.stage, it.stageName) && pressed(filter.task, it.task) && pressed(filter.kind, it.kind)
    && within(it.step, filter.steps) && it.words.includes(filter.words) && it.said.some(wanted)).sort(ORDERS[filter.order][1]);
  turnTo(0);
}

function turnTo(number_) {
  const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
  pageNumber = Math.max(0, Math.min(last, number_));
  const shown = found.slice(pageNumber * PAGE, (pageNumber + 1) * PAGE);
  leaveToken();
  $("#cards").replaceChildren(...(shown.length ? shown.map(card) : [el("p", { class: "empty" }, "No group is like that.")]));
  $("#count").textContent = `${plural(found.length, "group")} of ${groups.length.toLocaleString("en")}`;
  for (const pager of document.querySelectorAll("#book .pager")) {
    const from = found.length ? pageNumber * PAGE + 1 : 0;
    pager.replaceChildren(
      el("button", { type: "button", "data-to": "back", disabled: !pageNumber, onclick: () => turn(pager, -1) }, "← Back"),
      el("span", {}, `${from}–${pageNumber * PAGE + shown.length}`),
      el("button", { type: "button", "data-to": "on", disabled: pageNumber === last, onclick: () => turn(pager, 1) }, "On →"));
  }
}

function turn(pager, by) {
  turnTo(pageNumber + by);
  const same = pager.querySelector(by < 0 ? "[data-to=back]" : "[data-to=on]");
  (same.disabled ? pager.querySelector("button:not(:disabled)") : same)?.focus({ preventScroll: true });
  if (pager.parentElement.classList.contains("end")) $("#count").scrollIntoView({ block: "center" });
}

function filters() {
  const form = $("#book .filters");
  const chips = (key, title, values) => {
    const buttons = values.map((value) => el("button", { type: "button", class: "chip", "aria-pressed": "false", "data-value": value, onclick: (event) => {
      const on = !filter[key].delete(value) && filter[key].add(value);
      event.currentTarget.setAttribute("aria-pressed", String(Boolean(on)));
      search();
    } }, value, el("small", {}, groups.filter((it) => (key === "stage" ? it.stageName : it[key]) === value).length.toLocaleString("en"))));
    return values.length > 1 && el("fieldset", { "data-key": key }, el("legend", {}, title), el("div", { class: "options" }, buttons));
  };
  const range = (key, title, step) => {
    const input = (place, name) => el("input", { type: "number", step, placeholder: name, "aria-label": `${title} ${name}`, oninput: (event) => {
      filter[key][place] = event.target.value === "" ? null : Number(event.target.value);
      search();
    } });
    return el("fieldset", { "data-key": key }, el("legend", {}, title), el("div", { class: "options" }, input(0, "from"), el("span", {}, "–"), input(1, "to")));
  };
  const select = (key, title, options) => el("label", {}, el("span", {}, title),
    el("select", { "data-key": key, onchange: (event) => { filter[key] = event.target.value; search(); } }, options.map(([value, text]) => el("option", { value }, text))));
  const counts = new Map();
  for (const it of groups) for (const said of it.said) for (const why of reasonsOf(said)) counts.set(why, (counts.get(why) || 0) + 1);
  const reasons = [...counts].sort((a, b) => b[1] - a[1]);
  const unique = (key) => [...new Set(groups.map((it) => it[key]))];
  form.append(...[
    chips("stage", "Stage", unique("stageName")), chips("task", "Task", unique("task").sort()), chips("kind", "Kind", unique("kind")),
    range("steps", "Step", 1), range("reward", "Reward", "any"),
    select("reason", "Reason", [["", "any"], ["none", "no reason given"], ...reasons.map(([why, count]) => [`=${why}`, `${why.replaceAll("_", " ")} (${count.toLocaleString("en")})`])]),
    el("label", {}, el("span", {}, "Words"), el("input", { type: "search", placeholder: "in prompt or completion", oninput: (event) => { filter.words = event.target.value.toLowerCase(); search(); } })),
    select("order", "Order", Object.entries(ORDERS).map(([value, [text]]) => [value, text])),
    el("button", { type: "reset" }, "Clear")].filter(Boolean));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    Object.assign(filter, { stage: new Set(), task: new Set(), kind: new Set(), reason: "", steps: [null, null], reward: [null, null], words: "", order: "trained" });
    form.querySelectorAll(".chip").forEach((it) => it.setAttribute("aria-pressed", "false"));
    search();
  });
}

// What a token can be shaded by: a value in nats, and the value of the full shade.
const SHADINGS = {
  ratio: { title: "Log-ratio", needs: "reference", full: 3, value: (said, i) => said.logprobs[i] - said.reference[i], signed: true,
    ends: ["−3 reference likelier", "policy likelier +3"] },
  surprise: { title: "Surprise", needs: "logprobs", full: 4, value: (said, i) => -said.logprobs[i], ends: ["0", "4 nats or more"] },
  entropy: { title: "Entropy", needs: "entropies", full: 2, value: (said, i) => said.entropies[i], ends: ["0", "2 nats or more"] },
};

function shades() {
  const there = Object.keys(SHADINGS).filter((key) => groups.some((it) => it.said.some((said) => SHADINGS[key].needs in said)));
  if (!there.length) return;
  const key = el("span", { class: "key" });
  const choose = (name) => {
    shading = name;
    const it = SHADINGS[name];
    key.replaceChildren(...(it ? [it.ends[0], el("i", { class: it.signed ? "ratio" : "amount" }), it.ends[1]] : []));
    document.querySelectorAll("#cards .said").forEach(shade);
  };
  $("#book .tools").append(key, segmented("Shade of tokens", [...there.map((name) => [name, SHADINGS[name].title]), ["none", "None"]], there[0], choose));
  choose(there[0]);
}

const saidOf = new WeakMap(); // of a list item, what it shows

function shade(item) {
  const said = saidOf.get(item), it = SHADINGS[shading];
  item.querySelectorAll(".text > span[data-i]").forEach((span) => {
    const value = it && it.needs in said ? it.value(said, Number(span.dataset.i)) : 0;
    const share = Math.round(62 * Math.min(1, Math.abs(value) / (it ? it.full : 1)));
    const colour = it && it.signed ? (value > 0 ? "--accent" : "--bad") : "--s4";
    span.style.backgroundColor = share > 2 ? `color-mix(in srgb, var(${colour}) ${share}%, transparent)` : "";
  });
}

function card(it) {
  const label = `${it.stageName}, step ${it.step}, row ${it.row}: ${it.kind} ${it.task}`;
  const node = el("article", { class: "card", tabindex: 0, "aria-label": label, onkeydown: (event) => onCardKey(event, node) },
    el("header", {}, el("b", {}, `${it.stageName} · step ${it.step}`), el("span", {}, `row ${it.row}`), el("span", {}, `${it.kind} · ${it.task}`),
      el("span", {}, `mean reward ${it.mean.toFixed(2)}`), el("code", {}, it.id)),
    el("div", { class: "body" }, el("div", { class: "side" }, pictures(it), el("p", { class: "said-prompt" }, it.prompt),
      el("p", { class: "answer" }, el("span", {}, "Gold"), it.solution)),
      el("ol", { class: "group", "aria-label": "Completions" }, it.said.map((said, g) => completion(it, said, g, (on) => activate(node, on ? g : null))))));
  return node;
}

function activate(node, g) {
  if (g === null) delete node.dataset.active; else node.dataset.active = g;
  node.querySelectorAll(".predicted").forEach((it) => it.classList.toggle("active", it.dataset.g === String(g)));
}

function pictures(it) {
  const shown = it.images.map((place, i) => {
    if (place === null) return el("div", { class: "missing" }, "missing image", el("br"), it.missing.shift() ?? "");
    const image = book.images[place];
    const small = Math.max(image.width, image.height) <= 160;
    const picture = el("img", { src: image.uri, alt: `image ${i + 1} of ${it.id}`, width: image.width, height: image.height, class: small ? "small" : "" });
    return el("div", { class: "seen" }, picture, i === 0 && overlay(it, image));
  });
  const key = [["g", it.gold.length || it.asked.some((box) => box.right), "gold"], ["p", it.said.some((said) => said.boxes.length), "predicted, by number"],
    ["a", it.asked.some((box) => !box.right), "in the question"]].filter(([, there]) => there);
  return shown.map((picture, i) => el("figure", {}, picture,
    i === 0 && key.length > 0 && el("figcaption", {}, key.map(([name, , text]) => el("span", { class: name }, el("i"), text)))));
}

/** Boxes over an image; gold ones are solid, predicted ones dashed with their completion's number, asked ones dotted. */
function overlay(it, image) {
  const width = 236, height = (width * image.height) / image.width;
  const draw = (box, label, kind, g) => {
    const [x, y, x2, y2] = [box[0] * width, box[1] * height, box[2] * width, box[3] * height];
    const shape = { x, y, width: Math.max(0, x2 - x), height: Math.max(0, y2 - y) };
    const wide = 6.4 * label.length + 6, tx = Math.max(0, Math.min(x, width - wide));
    const ty = g === undefined ? Math.max(0, y - 14) : Math.min(y2, height - 14);
    const tagX = g === undefined ? tx : Math.max(0, Math.min(width - wide, x2 - wide * (1 + (g % 3) * 1.1)));
    return svg("g", { class: kind, "data-g": g }, svg("rect", { class: "halo", ...shape }), svg("rect", { class: "box", ...shape }),
      svg("rect", { class: "tag", x: tagX, y: ty, width: wide, height: 14, rx: 3 }), svg("text", { x: tagX + 3, y: ty + 10.5 }, label));
  };
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    it.asked.map((asked) => draw(asked.box, asked.label, asked.right ? "asked right" : "asked")),
    it.said.flatMap((said, g) => said.boxes.map((box) => draw(box, String(g + 1), "predicted", g))),
    it.gold.map((box) => draw(box, "gold", "gold")));
}

function completion(it, said, g, activated) {
  const tokens = said.tokens.map((token, i) => {
    const end = token === "" && i === said.tokens.length - 1;
    return el("span", { "data-i": i, class: end ? "end" : false }, end ? " end" : token);
  });
  const item = el("li", { class: `said${wanted(said) ? "" : " dim"}`, tabindex: -1,
    "aria-label": `completion ${g + 1}, reward ${number(said.reward)}, advantage ${signed(said.advantage, 2)}: ${said.text}`,
    onfocusin: () => activated(true), onfocusout: () => { activated(false); leaveToken(); }, onpointerenter: () => activated(true),
    onpointerleave: () => { activated(false); leaveToken(); }, onpointerover: (event) => {
      const span = event.target.closest("span[data-i]");
      if (span) showToken(item, Number(span.dataset.i)); else leaveToken();
    } },
    el("span", { class: "n" }, g + 1),
    el("div", { class: "earned" }, el("b", {}, said.reward.toFixed(2)),
      el("small", { class: said.advantage > 0 ? "up" : said.advantage < 0 ? "down" : "", title: "advantage" }, signed(said.advantage, 2))),
    el("div", {}, el("div", { class: "text" }, tokens.length ? tokens : said.text),
      el("div", { class: "about" }, Object.entries(said.parts).map(([name, value]) => el("span", {}, `${name} ${number(value)}`)),
        Object.entries(said.reasons).map(([name, why]) => el("span", { class: "why" }, `${name}: ${why.replaceAll("_", " ")}`)),
        !said.finished && el("span", { class: "why" }, "cut off"), el("span", {}, plural(said.tokens.length, "token")),
        el("button", { type: "button", "aria-expanded": "false", onclick: (event) => replay(event.currentTarget, `${it.command}${g + 1}`) }, "replay"))));
  saidOf.set(item, said);
  shade(item);
  return item;
}

function replay(button, command) {
  const there = button.parentElement.parentElement.querySelector(".command");
  if (there) there.remove(); else button.parentElement.after(el("code", { class: "command" }, command));
  button.setAttribute("aria-expanded", String(!there));
}

let token = null; // the list item and the number of the token that is shown
function showToken(item, i) {
  const said = saidOf.get(item);
  leaveToken();
  item.querySelector(`span[data-i="${i}"]`).classList.add("now");
  token = [item, i];
  const values = [`log-prob ${number(said.logprobs[i])}`];
  if (said.reference) values.push(`reference ${number(said.reference[i])}`, `log-ratio ${signed(said.logprobs[i] - said.reference[i], 3)}`);
  if (said.entropies) values.push(`entropy ${number(said.entropies[i])}`);
  $("#token").replaceChildren(el("code", {}, JSON.stringify(said.tokens[i])), values.join(" · "));
  $("#token").hidden = false;
}
function leaveToken() {
  if (token) token[0].querySelector(".now")?.classList.remove("now");
  token = null;
  $("#token").hidden = true;
}

function onCardKey(event, node) {
  const item = event.target.closest(".said");
  const items = [...node.querySelectorAll(".said")];
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const along = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (event.target === node) {
    const next = by === 1 ? node.nextElementSibling : node.previousElementSibling;
    if (by && next) next.focus();
    else if (event.key === "Enter") items[0]?.focus();
    else return;
  } else if (event.target === item) {
    if (by) (items[items.indexOf(item) + by] || item).focus();
    else if (event.key === "Escape") node.focus();
    else if (along && saidOf.get(item).tokens.length) {
      const now = token && token[0] === item ? token[1] + along : along > 0 ? 0 : saidOf.get(item).tokens.length - 1;
      showToken(item, Math.max(0, Math.min(saidOf.get(item).tokens.length - 1, now)));
      item.querySelector(".now").scrollIntoView({ block: "nearest" });
    } else return;
  } else return;
  event.preventDefault();
}

function bookSection() {
  if (!book.counts.found) { $("#book").remove(); $(".skip").remove(); return; }
  prepare();
  const { shown, found: all, missing } = book.counts;
  const notes = [shown < all
    ? `${shown.toLocaleString("en")} of ${plural(all, "group")} that were written are in this page: of each stage the first, the last and those`
      + " halfway between others, as many as fit."
    : `All ${plural(all, "group")} that were written are in this page.`];
  if (runs.length > 1) notes.push(`They are those of ${run.label}.`);
  if (missing) notes.push(`${plural(missing, "image")} could not be read.`);
  $("#book .note").append(notes.join(" "));
  filters();
  search();
  shades();
}

// ------------------------------------------------------------------------------------------- checkpoints and settings

function checkpoints() {
  const rows = runs.flatMap((it) => it.stages.flatMap((stage) => [
    ...stage.checkpoints.map(([step, size]) => [it.label, stage.name, `step ${step.toLocaleString("en")}`, size]),
    ...(stage.export ? [[it.label, stage.name, "model, exported", stage.export]] : [])]));
  const columns = runs.length > 1 ? ["run", "stage", "what", "size"] : ["stage", "what", "size"];
  $("#checkpoints").append(rows.length
    ? el("div", { class: "scroll" }, el("table", { class: "plain" }, el("thead", {}, el("tr", {}, columns.map((it) => el("th", { scope: "col", class: it === "size" ? "number" : "" }, it)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, (runs.length > 1 ? row.slice(0, 3) : row.slice(1, 3)).map((it) => el("td", {}, it)), el("td", { class: "number" }, bytes(row[3])))))))
    : el("p", { class: "note" }, "None so far."));
}

/** `{a: [{b: 1}]}` -> `[["a[0].b", 1]]` */
function flat(value, name = "") {
  if (Array.isArray(value) && value.some((it) => it && typeof it === "object")) return value.flatMap((it, i) => flat(it, `${name}[${i}]`));
  if (value && typeof value === "object" && !Array.isArray(value)) {
    const keys = Object.keys(value);
    return keys.length ? keys.flatMap((key) => flat(value[key], name ? `${name}.${key}` : key)) : [[name, "{}"]];
  }
  return [[name, typeof value === "string" ? value : JSON.stringify(value)]];
}

function settings() {
  const tables = runs.map((it) => new Map(flat(it.config)));
  const keys = [...new Set(tables.flatMap((it) => [...it.keys()]))];
  const differs = (key) => tables.some((it) => it.get(key) !== tables[0].get(key));
  const sections = new Map();
  for (const key of keys) {
    const section = /[.[]/.test(key) ? key.split(/[.[]/)[0] : "general";
    sections.set(section, [...(sections.get(section) || []), key]);
  }
  const table = (list) => el("table", {}, runs.length > 1 && el("thead", {}, el("tr", {}, el("th"), runs.map((it) => el("th", { scope: "col" }, it.label)))),
    el("tbody", {}, list.map((key) => el("tr", { class: differs(key) ? "differs" : "" }, el("td", {}, key), tables.map((it) => el("td", {}, it.get(key) ?? "–"))))));
  const details = (title, list, open) => el("details", { open }, el("summary", {}, title, el("small", {}, plural(list.length, "setting"))), el("div", { class: "inside" }, table(list)));
  const other = keys.filter(differs);
  $("#settings").append(...(runs.length > 1 ? [details("what differs", other, true)] : []), ...[...sections].map(([title, list]) => details(title, list, false)));
  const all = () => [...document.querySelectorAll("#settings details")];
  $("#settings .tools").append(el("button", { type: "button", onclick: () => { const open = all().some((it) => !it.open); all().forEach((it) => (it.open = open)); } }, "Open or close all"));
}

// --------------------------------------------------------------------------------------------------------------- page

function theme() {
  const order = ["auto", "light", "dark"];
  const button = $("#theme");
  button.addEventListener("click", () => {
    const next = order[(order.indexOf(button.dataset.theme || "auto") + 1) % 3];
    button.dataset.theme = next;
    button.textContent = `Theme: ${next}`;
    document.documentElement.style.colorScheme = next === "auto" ? "" : next;
  });
}

theme();
overview();
curves();
forgetting();
bookSection();
checkpoints();
settings();
$(".top nav").append(...[...document.querySelectorAll("main section[id]")].map((it) =>
  el("a", { href: `#${it.id}` }, it.id === "overview" ? "Overview" : it.querySelector("h2").textContent)));
