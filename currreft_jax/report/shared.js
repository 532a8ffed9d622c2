
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
  const key = [["g", group.gold_boxes.length || group.question_boxes.some((box) => box.correct), "gold"], ["p", group.completions.some((completion) => completion.boxes.length), group.completions.length > 1 ? "predicted, by completion" : "predicted"],
    ["q", group.question_boxes.some((box) => !box.correct), "in the question"]].filter(([, present]) => present);
  return shown.map((figure, i) => el("figure", {}, figure,
    i === 0 && key.length > 0 && el("figcaption", {}, key.map(([name, , text]) => el("span", { class: name }, el("i"), text)))));
}

/** Boxes over an image: gold solid, predicted dashed with the completion's number, boxes of the question dotted. */
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
  const single = group.completions.length === 1;
  const predicted = group.completions.flatMap((completion, g) => completion.boxes.map((box) => drawBox(box, single ? "answer" : String(g + 1), "predicted", g)));
  const gold = group.gold_boxes.map((box) => drawBox(box, "gold", "gold"));
  // The dashes of one answer let gold be seen below them; those of many would hide it.
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    group.question_boxes.map((question) => drawBox(question.box, question.label, question.correct ? "question correct" : "question")),
    single ? [gold, predicted] : [predicted, gold]);
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
