
const { rejection, disputed, kept } = DATA;
const words = (name) => name.replaceAll("_", " ");
const percent = (share) => (share === null ? "" : `${(100 * share).toFixed(1)}%`);
const count = (value) => value.toLocaleString("en");
const show = (section, title, header, rows) => $(section).append(title && el("h3", {}, title), el("div", { class: "scroll" }, dataTable({ header, rows, printed: 0 })));

function overview() {
  const facts = [`${plural(rejection.kept, "row")} kept of ${count(rejection.quota)} wanted`, `${plural(rejection.sampled, "answer")} sampled`, `threshold ${number(rejection.threshold)}`];
  if (rejection.distilled) facts.push("answers of another model: distillation");
  $("#overview .lead").append(facts.join(" · "));
}

function composition() {
  const { sources } = rejection;
  $("#composition .note").append("Kept rows against the quota of each source, and what became of all sampled answers.");
  const totals = new Map();
  for (const { group, kept: rows, quota } of sources.filter(({ group }) => group)) {
    const [before, wanted] = totals.get(group) || [0, 0];
    totals.set(group, [before + rows, wanted + quota]);
  }
  const meter = (label, part, whole) => el("div", { class: "meter" }, el("span", {}, label), el("div", { class: "progress" }, progressBar(part / Math.max(1, whole))), el("b", {}, `${count(part)} of ${count(whole)}`));
  $("#composition").append(el("div", { class: "meters" }, sources.map(({ source, kept: rows, quota }) => meter(source, rows, quota)), [...totals].map(([group, [rows, quota]]) => meter(`all ${group}`, rows, quota))));
  const reasons = Object.entries(rejection.reasons).sort((a, b) => b[1] - a[1]).map(([name]) => name);
  show("#composition", "Answers by what became of them", ["source", "group", "rows", "answered", ...reasons.map(words)],
    [...sources.map((source) => [source.source, source.group, count(source.rows), count(source.sampled), ...reasons.map((name) => count(source.reasons[name] || 0))]),
      ["all", "", "", "", ...reasons.map((name) => count(rejection.reasons[name]))]]);
}

/** Answers by overall score; those above the threshold are solid, the others hatched. */
class Histogram {
  constructor() {
    this.plot = svg("svg", { role: "img", "aria-label": `Answers by score, threshold ${rejection.threshold}: ${rejection.histogram.map(([low, high, size]) => `${low} to ${high}: ${size}`).join(", ")}` });
    this.node = el("article", { class: "chart wide intervals" }, el("header", {}, el("h4", {}, "Overall scores", el("small", {}, "answers by score, 0 to 100"))), this.plot);
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.plot;
    if (!width || !rejection.histogram.length) return;
    const frame = { left: 56, right: width - 10, top: 20, bottom: height - 34 };
    const most = Math.max(...rejection.histogram.map(([, , size]) => size));
    const toX = (score) => frame.left + (score / 100) * (frame.right - frame.left), toY = (size) => frame.bottom - (size / most) * (frame.bottom - frame.top);
    this.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.plot.replaceChildren(
      ...ticks(0, most, 4).filter(Number.isInteger).flatMap((mark) => [svg("line", { class: "grid", x1: frame.left, x2: frame.right, y1: toY(mark), y2: toY(mark) }), svg("text", { class: "axis", x: frame.left - 7, y: toY(mark) + 3.5, "text-anchor": "end" }, count(mark))]),
      ...rejection.histogram.map(([low, high, size]) => svg("rect", { class: `score ${low >= rejection.threshold ? "above" : "below"}`, x: toX(low) + 1, y: toY(size), width: toX(high) - toX(low) - 2, height: frame.bottom - toY(size) }, svg("title", {}, `${low} to ${high}: ${plural(size, "answer")}`))),
      ...[0, 20, 40, 60, 80, 100].map((score) => svg("text", { class: "axis", x: toX(score), y: frame.bottom + 14, "text-anchor": "middle" }, score)),
      svg("text", { class: "axis", x: (frame.left + frame.right) / 2, y: height - 4, "text-anchor": "middle" }, "score"),
      svg("line", { class: "threshold", x1: toX(rejection.threshold), x2: toX(rejection.threshold), y1: 6, y2: frame.bottom }),
      svg("text", { class: "axis strong", x: toX(rejection.threshold) - 5, y: 14, "text-anchor": "end" }, `threshold ${number(rejection.threshold)}`));
  }
}

function scores() {
  $("#scores .note").append("Scores of all judged answers, in bins of five points. Filled: from the threshold up; outlined: below it.");
  $("#scores .charts").append(new Histogram().node);
}

function secondValue(value) {
  if (typeof value === "number") return number(value);
  return Array.isArray(value) ? value.map(number).join(" to ") : value ?? "undefined";
}

function judge() {
  const { confusion, planted, second_judge: second } = rejection;
  show("#judge", `Judge against rules: ${plural(confusion.checked, "answer")} that rules can check`, ["judge", "right by rules", "wrong by rules"],
    [["above the threshold", count(confusion.above_right), count(confusion.above_wrong)], ["not above it", count(confusion.below_right), count(confusion.below_wrong)]]);
  if (planted.length) show("#judge", "Planted faults", ["planted", "answers", "above the threshold", "not judged"], planted.map(([name, ...sizes]) => [name, ...sizes.map(count)]));
  if (second) show("#judge", "Second judge", ["", "value"], Object.entries(second).filter(([name]) => name !== "largest").map(([name, value]) => [words(name), secondValue(value)]));
}

function thresholds() {
  $("#thresholds .note").append("What another threshold would keep of the same answers, without a new call. Wrong by rules: share of the answers that the judge alone would keep.");
  show("#thresholds", "", ["threshold", "kept", "short", "wrong by rules", "planted faults passed", "mean length, tokens"],
    rejection.sweep.map(([threshold, rows, short, wrong, faults, length]) => [number(threshold), count(rows), count(short), percent(wrong), percent(faults), length === null ? "" : number(length)]));
}

/** What a judge says of an answer; without a score, why there is none. */
function judgeColumn(judge, title) {
  const { overall, scores, unjudged, rationale } = judge;
  const said = overall === null ? words(unjudged) : `score ${number(overall)}`;
  return el("div", { class: `side-answer ${overall !== null && overall > rejection.threshold ? "right" : ""}` }, el("h4", {}, title, el("small", {}, said)),
    el("p", { class: "prompt" }, rationale || "no rationale"), el("div", { class: "facts" }, Object.entries(scores).map(([name, value]) => el("span", {}, `${name} ${number(value)}`))));
}

function answerCard(row, images) {
  const group = { ...row, id: row.row, missing: [...row.missing], gold_boxes: [], question_boxes: [], completions: [] };
  const checked = row.right === null ? "not checked by rules" : row.right ? "right by rules" : "wrong by rules";
  const several = row.judges.length > 1;
  return el("article", { class: "card", tabindex: 0, "aria-label": row.row }, el("header", {}, el("b", {}, row.source), el("span", {}, row.task), el("span", {}, row.judges.map(({ overall, unjudged }) => (overall === null ? words(unjudged) : number(overall))).join(" and ")), el("span", {}, checked), el("code", {}, `${row.row}/${row.sample}`)),
    el("div", { class: "body" }, el("div", { class: "side" }, imageFigures(group, images), el("p", { class: "prompt" }, row.prompt)),
      el("div", { class: several ? "pair three" : "pair" }, el("div", { class: "side-answer plain-side" }, el("h4", {}, several ? "Answer" : "Kept answer"), el("div", { class: "text" }, row.answer)),
        row.judges.map((judge, i) => judgeColumn(judge, several ? `${["First", "Second"][i]} judge: ${judge.name}` : "Judge")))));
}

function disagreements() {
  if (!rejection.second_judge) return $("#disagreements").remove();
  const shown = disputed.rows.length < disputed.found ? `the first ${count(disputed.rows.length)} of ` : "";
  $("#disagreements .note").append(`Answers that the two judges score differently, ${shown}${count(disputed.found)}: those on other sides of the threshold first, then by the difference. Green lines are above the threshold.`);
  $("#disagreements .cards").append(...disputed.rows.map((row) => answerCard(row, disputed.images)));
}

function keptAnswers() {
  $("#kept .note").append(`Of ${plural(kept.found, "kept row")}, up to ${kept.per_source} of each source are drawn at random, by seed ${kept.seed}.`);
  $("#kept .cards").append(...kept.rows.map((row) => answerCard(row, kept.images)));
}

overview();
composition();
scores();
judge();
disagreements();
thresholds();
keptAnswers();
finish();
