
"use strict";
// Text from files and models enters the page as textContent only, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (selector) => document.querySelector(selector);

// ------------------------------------------------------------------------------------------------------- helpers

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** Formats a number with three significant digits, and all digits before the point. */
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
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** A group of buttons of which one is pressed. */
function segmented(label, options, selected, select) {
  const buttons = options.map(([value, text]) =>
    el("button", { type: "button", "aria-pressed": String(value === selected), onclick: () => press(value) }, text));
  function press(value) {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(options[i][0] === value)));
    select(value);
  }
  return el("div", { class: "segmented", role: "group", "aria-label": label }, buttons);
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

// ------------------------------------------------------------------------------------------------------------ tables

function progressBar(fraction) {
  const fill = el("i");
  fill.style.width = `${Math.min(100, 100 * fraction)}%`;
  return fill;
}

/** A table; the paper's rows are set off, and the interval of a cell stands below its value. */
function dataTable({ header, rows, printed }) {
  const isNumber = (text) => /^[+\d<[-]/.test(text);
  const cell = (text, i) => {
    const [, value, rest] = text.match(/^([\d.]+)( \[.*)$/) || [null, text, ""];
    const verdict = { holds: "holds", "does not hold": "fails" }[text];
    return el(i ? "td" : "th", { scope: i ? false : "row", class: verdict || (i && isNumber(text) ? "number" : "") }, value, rest && el("small", {}, rest.trim()));
  };
  const heading = (name, i) => el("th", { scope: "col", class: i && rows.some((row) => isNumber(row[i])) ? "number" : "" }, name);
  return el("table", { class: "plain data" }, el("thead", {}, el("tr", {}, header.map(heading))),
    el("tbody", {}, rows.map((row, i) => el("tr", { class: i >= rows.length - printed ? "printed" : "" }, row.map(cell)))));
}

// --------------------------------------------------------------------------------------------------------- intervals

const MARKERS = [ // told apart without colours, of radius r around x, y
  (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
  (x, y, r) => `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  (x, y, r) => `M${x} ${y - 1.3 * r}L${x + 1.2 * r} ${y + r}H${x - 1.2 * r}z`,
  (x, y, r) => `M${x} ${y - 1.4 * r}L${x + 1.4 * r} ${y}L${x} ${y + 1.4 * r}L${x - 1.4 * r} ${y}z`,
];
const LETTER = 5.6; // width of a letter of an axis, in pixels

/**
 * The bounds and titles of stages, from their [first x, last x, name] in pixels. A name that is wider than its stage ends
 * where the stage does, if the name before it leaves the room; else it is cut.
 */
function stageTitles(places, top, plotTop, bottom) {
  let taken = 0; // the end of the name before
  return places.flatMap(([x1, x2, name], i) => {
    const width = LETTER * name.length, letters = Math.floor((x2 - x1 - 4) / LETTER);
    const fits = name.length <= letters, fitsBefore = !fits && x2 - width >= taken + 6;
    const shown = fits || fitsBefore ? name : letters > 2 ? `${name.slice(0, letters - 1)}…` : "";
    taken = fitsBefore ? x2 : x1 + 4 + LETTER * shown.length;
    return [i > 0 && svg("line", { class: "bound", x1, x2: x1, y1: fitsBefore ? plotTop : top, y2: bottom }),
      shown && svg("text", { class: "axis", y: top + 7, ...(fitsBefore ? { x: x2, "text-anchor": "end" } : { x: x1 + 4 }) }, shown)].filter(Boolean);
  });
}

/** The keys of a chart's metrics, as docs/metrics.md has them; none for measures that are no metrics of a step. */
const metricKeys = (keys = []) => keys.length > 0 && el("code", { class: "keys" }, keys.map((key, i) => [i > 0 && " ", el("span", {}, key)]));

const MOST_WHISKERS = 40; // of a series; the intervals of more points are a band

/**
 * Lines over steps, with an interval at each point: `keys` of the metrics, `series` of {label, points: [[x, y, low, high]]},
 * `bounds` of [x, title].
 */
class IntervalChart {
  constructor({ title, unit, keys, series, bounds, range }) {
    Object.assign(this, { series, bounds, range });
    this.plot = svg("svg", { role: "img", "aria-label": `${title}, ${unit}, over steps. ` + series.map(({ label, points }) => {
      const [x, y, low, high] = points[points.length - 1];
      return `${label}: ${number(y)} at step ${x}, from ${number(low)} to ${number(high)}`;
    }).join("; ") });
    this.node = el("article", { class: "chart intervals" }, el("header", {}, el("h4", {}, title, el("small", {}, unit), metricKeys(keys))),
      el("div", { class: "legend" }, series.map(({ label }, i) => el("span", { class: `d${i % 4}`, "--c": `var(--s${i % 8})` },
        svg("svg", { class: "swatch", width: 22, height: 13, "aria-hidden": "true" }, svg("path", { class: "line", d: "M0 6.5H22" }), svg("path", { class: "dot", d: MARKERS[i % 4](11, 6.5, 3.5) })), label))), this.plot);
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.plot;
    const points = this.series.flatMap((each) => each.points);
    if (!width || !points.length) return;
    const [low, high] = this.range || [Math.min(0, ...points.map((point) => point[2])), Math.max(...points.map((point) => point[3])) || 1];
    const first = Math.min(...points.map(([x]) => x), ...this.bounds.map(([x]) => x)), last = Math.max(first + 1, ...points.map(([x]) => x));
    const frame = { left: 44, right: width - 12, top: this.bounds.length ? 20 : 8, bottom: height - 34 };
    const toX = (x) => frame.left + 6 + ((x - first) / (last - first)) * (frame.right - frame.left - 6);
    const toY = (y) => frame.top + ((high - y) / (high - low)) * (frame.bottom - frame.top);
    this.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.plot.replaceChildren(
      ...ticks(low, high, 4).flatMap((mark) => [svg("line", { class: "grid", x1: frame.left, x2: frame.right, y1: toY(mark), y2: toY(mark) }),
        svg("text", { class: "axis", x: frame.left - 7, y: toY(mark) + 3.5, "text-anchor": "end" }, number(mark))]),
      ...ticks(first, last, Math.max(2, Math.floor(width / 90))).filter(Number.isInteger).map((step) =>
        svg("text", { class: "axis", x: toX(step), y: frame.bottom + 14, "text-anchor": "middle" }, step.toLocaleString("en"))),
      svg("text", { class: "axis", x: (frame.left + frame.right) / 2, y: height - 4, "text-anchor": "middle" }, "steps"),
      ...stageTitles(this.bounds.map(([x, title], i) => [toX(x), i + 1 < this.bounds.length ? toX(this.bounds[i + 1][0]) : frame.right, title]), 5, frame.top, frame.bottom),
      ...this.series.map((each, i) => this.#series(each, i, toX, toY)));
  }

  #series({ points }, i, toX, toY) {
    const line = (column, list) => list.map((point, k) => `${k ? "L" : "M"}${toX(point[0]).toFixed(1)} ${toY(point[column]).toFixed(1)}`).join("");
    const band = points.length > MOST_WHISKERS;
    return svg("g", { class: `d${i % 4}`, "--c": `var(--s${i % 8})` },
      band ? svg("path", { class: "area", d: `${line(3, points)}${line(2, [...points].reverse()).replace("M", "L")}z` })
        : points.map(([x, , low, high]) => svg("path", { class: "whisker", d: `M${toX(x)} ${toY(low)}V${toY(high)}M${toX(x) - 4} ${toY(low)}h8M${toX(x) - 4} ${toY(high)}h8` })),
      svg("path", { class: "line", d: line(1, points) }),
      !band && points.map(([x, y]) => svg("path", { class: "dot", d: MARKERS[i % 4](toX(x), toY(y), 3.5) })));
  }
}

// ------------------------------------------------------------------------------------------------------------- images

/** The images of a row; the first one carries its boxes. */
function imageFigures(group, images) {
  const shown = group.images.map((index, i) => {
    if (index === null) return el("div", { class: "missing" }, "missing image", el("br"), group.missing.shift() ?? "");
    const image = images[index];
    const small = Math.max(image.width, image.height) <= 160;
    const img = el("img", { src: image.uri, alt: `image ${i + 1} of ${group.id}`, width: image.width, height: image.height, class: small ? "small" : "" });
    return el("div", { class: "image" }, img, i === 0 && overlay(group, image));
  });
  const key = [["g", group.gold_boxes.length || group.question_boxes.some((box) => box.correct), "gold"], ...predictedKeys(group.completions),
    ["q", group.question_boxes.some((box) => !box.correct), "in the question"]].filter(([, present]) => present);
  return shown.map((figure, i) => el("figure", {}, figure,
    i === 0 && key.length > 0 && el("figcaption", {}, key.map(([name, , text]) => el("span", { class: name }, el("i"), text)))));
}

/** What the boxes of completions are in the key of an image; those with names have a colour and a dash for each. */
function predictedKeys(completions) {
  if (completions.some(({ name }) => name)) return completions.map(({ name, boxes }) => [name === "before" ? "b" : "p", boxes.length, name]);
  return [["p", completions.some(({ boxes }) => boxes.length), completions.length > 1 ? "predicted, by completion" : "predicted"]];
}

/**
 * Boxes over an image: gold solid, predicted dashed with the completion's number or name, those of a completion named
 * before in long and short dashes, boxes of the question dotted.
 */
function overlay(group, image) {
  const width = 236, height = (width * image.height) / image.width;
  const drawBox = (box, label, kind, g) => {
    const [x, y, x2, y2] = [box[0] * width, box[1] * height, box[2] * width, box[3] * height];
    const shape = { x, y, width: Math.max(0, x2 - x), height: Math.max(0, y2 - y) };
    const wide = 7 * label.length + 6, tx = Math.max(0, Math.min(x, width - wide));
    const ty = g === undefined ? Math.max(0, y - 14) : Math.min(y2, height - 14);
    const tagX = g === undefined ? tx : Math.max(0, Math.min(width - wide, x2 - wide * (1 + (g % 3) * 1.1)));
    return svg("g", { class: kind, "data-g": g }, svg("rect", { class: "halo", ...shape }), svg("rect", { class: "box", ...shape }),
      svg("rect", { class: "tag", x: tagX, y: ty, width: wide, height: 14, rx: 3 }), svg("text", { x: tagX + 3, y: ty + 10.5 }, label));
  };
  const single = group.completions.length === 1, named = group.completions.some(({ name }) => name);
  const predicted = group.completions.flatMap(({ boxes, name }, g) => boxes.map((box) =>
    drawBox(box, name || (single ? "answer" : String(g + 1)), name === "before" ? "predicted before" : "predicted", g)));
  const gold = group.gold_boxes.map((box) => drawBox(box, "gold", "gold"));
  // The dashes of one answer let gold be seen below them; those of many would hide it.
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    group.question_boxes.map((question) => drawBox(question.box, question.label, question.correct ? "question correct" : "question")),
    single || named ? [gold, predicted] : [predicted, gold]);
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

/** Makes the theme's button work, and links the sections that are left. */
function finish() {
  theme();
  $(".top nav").append(...[...document.querySelectorAll("main section[id]")].map((section) =>
    el("a", { href: `#${section.id}` }, section.id === "overview" ? "Overview" : section.querySelector("h2").textContent)));
}
