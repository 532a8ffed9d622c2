
const { comparison, answers } = DATA;
const MODELS = comparison.models.map((model) => model.name);
const DOMAINS = { in: "in domain", out: "out of domain" };
const TASKS = ["detection", "math", "classify"]; // the paper's order; others follow
let metric = comparison.metrics.some(([name]) => name === "readable") ? "readable" : comparison.metrics[0][0];
const shortTitle = (name) => comparison.metrics.find(([known]) => known === name)[1].split(/[:,]/)[0] + (name.endsWith("_score") ? " score" : "");

// ----------------------------------------------------------------------------------------------------------- overview

function overview() {
  const { models } = comparison;
  $("#overview .lead").append(`${plural(models.length, "model")} · ${plural(Math.max(...models.map((model) => model.rows)), "row")} · ${[...new Set(models.flatMap((model) => model.suites))].join(", ")}`);
  $("#overview .tiles").append(...models.map((model) => el("article", { class: "tile" },
    el("h3", {}, model.name),
    el("dl", { class: "pairs" }, [["rows", model.rows.toLocaleString("en")], ["suites", model.suites.length], ["cut off by the token limit", model.cut_off.toLocaleString("en")],
      ...(model.failed ? [["not taken by the server", model.failed.toLocaleString("en")]] : [])].map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])))));
}

// ----------------------------------------------------------------------------------------------------------- accuracy

// Models differ by colour and by hatching, which survives greyscale: [angle, distance, width] of its lines.
const HATCHES = [null, [45, 7, 2.2], [0, 6, 2.2], [-45, 4.5, 1.4], [90, 6, 2.2], [45, 4, 1.4], [0, 3.5, 1.2], [-45, 8, 3]];
const fillOf = (model) => `url(#hatch-${model % 8})`;

function hatching() {
  return svg("svg", { class: "defs", "aria-hidden": "true" }, svg("defs", {}, HATCHES.map((hatch, i) => {
    const size = hatch ? hatch[1] : 8;
    return svg("pattern", { id: `hatch-${i}`, width: size, height: size, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${hatch ? hatch[0] : 0})` },
      svg("rect", { width: size, height: size, class: "ink", "--c": `var(--s${i})` }), hatch && svg("rect", { width: size, height: hatch[2], class: "gap" }));
  })));
}

function swatch(model) {
  return svg("svg", { class: "swatch", width: 22, height: 13, "aria-hidden": "true" }, svg("rect", { x: 0.5, y: 0.5, width: 21, height: 12, fill: fillOf(model), class: "edge", "--c": `var(--s${model % 8})` }));
}

/** Bars of one kind of questions: tasks in domain, then out of domain, a bar for each model, with its interval. */
class BarChart {
  constructor(group) {
    this.group = group;
    this.plot = svg("svg", { role: "img", tabindex: 0 });
    this.node = el("article", { class: "chart barchart" }, el("header", {}, el("h4", {}, comparison.groups[group], el("small", {}, "percent of rows, 95% intervals"))), this.plot);
  }

  /** Returns the bars as [domain, task, bars of the models] in the order of the axis. */
  columns() {
    const bars = comparison.bars.filter((bar) => bar.group === this.group && bar.metric === metric);
    const tasks = [...TASKS, ...new Set(bars.map((bar) => bar.task).filter((task) => !TASKS.includes(task)))];
    return Object.keys(DOMAINS).flatMap((domain) => tasks.map((task) => [domain, task, bars.filter((bar) => bar.domain === domain && bar.task === task)]))
      .filter(([, , list]) => list.length);
  }

  draw() {
    const columns = this.columns();
    this.node.hidden = !columns.length;
    this.node.classList.toggle("wide", columns.length > 3);
    const { clientWidth: width, clientHeight: height } = this.plot;
    if (!width || !columns.length) return;
    const frame = { left: 44, right: width - 6, top: 40, bottom: height - 22 };
    const toY = (share) => frame.bottom - share * (frame.bottom - frame.top);
    const gaps = columns.map(([domain], i) => (i && columns[i - 1][0] !== domain ? 1 : 0));
    const slot = Math.min(260, (frame.right - frame.left) / (columns.length + 0.4 * gaps.reduce((sum, gap) => sum + gap, 0)));
    let x = frame.left;
    const places = columns.map((_, i) => { x += gaps[i] * 0.4 * slot; const start = x; x += slot; return start; });
    this.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.plot.setAttribute("aria-label", `${comparison.groups[this.group]}, ${shortTitle(metric)}. ` + columns.map(([domain, task, bars]) =>
      `${task} ${DOMAINS[domain]}: ${bars.map((bar) => spoken(bar)).join(", ")}`).join(". "));
    this.plot.replaceChildren(...this.#axis(frame, toY, x), ...this.#domains(columns, places, slot, frame),
      ...columns.map(([domain, task, bars], i) => this.#column(task, bars, places[i], slot, frame, toY)));
  }

  #axis(frame, toY, right) {
    return [0, 0.25, 0.5, 0.75, 1].flatMap((share) => [svg("line", { class: "grid", x1: frame.left, x2: right, y1: toY(share), y2: toY(share) }),
      svg("text", { class: "axis", x: frame.left - 7, y: toY(share) + 3.5, "text-anchor": "end" }, `${100 * share}%`)]);
  }

  #domains(columns, places, slot, frame) {
    return Object.entries(DOMAINS).flatMap(([domain, title]) => {
      const own = places.filter((_, i) => columns[i][0] === domain);
      if (!own.length) return [];
      const x1 = own[0], x2 = own[own.length - 1] + slot;
      return [svg("line", { class: "bound", x1: x1 + 4, x2: x2 - 4, y1: frame.top - 22, y2: frame.top - 22 }), svg("text", { class: "axis strong", x: (x1 + x2) / 2, y: frame.top - 27, "text-anchor": "middle" }, title)];
    });
  }

  #column(task, bars, x, slot, frame, toY) {
    const wide = Math.min(46, (0.84 * slot) / MODELS.length);
    const start = x + (slot - wide * MODELS.length) / 2;
    return svg("g", {}, svg("text", { class: "axis", x: x + slot / 2, y: frame.bottom + 15, "text-anchor": "middle" }, task),
      bars.map((bar) => {
        const left = start + bar.model * wide + 0.08 * wide, middle = left + 0.42 * wide, cap = Math.min(5, 0.2 * wide);
        const [low, high] = bar.interval || [bar.mean, bar.mean];
        return svg("g", { class: "mean", "--c": `var(--s${bar.model % 8})` }, svg("title", {}, spoken(bar)),
          svg("rect", { class: "edge", x: left, y: toY(bar.mean), width: 0.84 * wide, height: Math.max(0, frame.bottom - toY(bar.mean)), fill: fillOf(bar.model) }),
          bar.interval && svg("path", { class: "whisker", d: `M${middle} ${toY(low)}V${toY(high)}M${middle - cap} ${toY(low)}h${2 * cap}M${middle - cap} ${toY(high)}h${2 * cap}` }),
          wide >= 24 && svg("text", { class: "axis value", x: middle, y: toY(high) - 4, "text-anchor": "middle" }, (100 * bar.mean).toFixed(wide >= 30 ? 1 : 0)));
      }));
  }
}

function spoken({ model, mean: share, interval, rows }) {
  const range = interval ? `, interval ${(100 * interval[0]).toFixed(1)} to ${(100 * interval[1]).toFixed(1)}` : ", no interval";
  return `${MODELS[model]} ${(100 * share).toFixed(1)}%${range}, ${plural(rows, "row")}`;
}

function accuracy() {
  $("#accuracy").append(hatching());
  $("#accuracy .runs").append(...MODELS.map((name, i) => el("span", {}, swatch(i), name)));
  const charts = comparison.groups.map((_, group) => new BarChart(group));
  $("#accuracy .bars").append(...charts.map((chart) => chart.node));
  const draw = () => charts.forEach((chart) => chart.draw());
  new ResizeObserver(draw).observe($("#accuracy .bars"));
  const choose = (name) => {
    metric = name;
    $("#accuracy > .note").textContent = comparison.metrics.find(([known]) => known === name)[1] + ". A bar is the mean over rows, its line the 95% interval.";
    draw();
  };
  $("#accuracy .tools").append(segmented("Measure", comparison.metrics.map(([name]) => [name, shortTitle(name)]), metric, choose));
  choose(metric);
}

// -------------------------------------------------------------------------------------------------------------- steps

/** Returns the steps before each stage of the evaluated checkpoints of a run, and the models' places on that axis. */
function stepAxis() {
  const evaluated = comparison.models.map(({ checkpoint }, model) => ({ ...checkpoint, model })).filter(({ run }) => run !== undefined);
  const runs = [...new Set(evaluated.map(({ run }) => run))];
  const own = evaluated.filter(({ run }) => run === runs[0]);
  const stages = [...new Set(own.map(({ stage }) => stage))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const lengths = stages.map((stage) => Math.max(...own.filter((each) => each.stage === stage).map(({ step }) => step)));
  const before = stages.map((_, i) => lengths.slice(0, i).reduce((sum, length) => sum + length, 0));
  const places = new Map(own.map(({ model, stage, step }) => [model, before[stages.indexOf(stage)] + step]));
  return { run: runs[0], others: runs.slice(1), bounds: stages.length > 1 ? stages.map((stage, i) => [before[i], stage]) : [], places };
}

function steps() {
  const { run, others, bounds, places } = stepAxis();
  const series = (group, task) => Object.entries(DOMAINS).map(([domain, label]) => ({ label,
    points: comparison.bars.filter((bar) => bar.metric === "readable" && bar.group === group && bar.task === task && bar.domain === domain && places.has(bar.model))
      .map(({ model, mean: share, interval }) => [places.get(model), share, ...(interval || [share, share])]).sort((a, b) => a[0] - b[0]) })).filter(({ points }) => points.length > 1);
  const tasks = [...new Set(comparison.bars.map(({ task }) => task))];
  const charts = comparison.groups.flatMap((title, group) => tasks.map((task) => ({ title: `${task}: ${title.toLowerCase()}`, unit: "share of rows", series: series(group, task), bounds, range: [0, 1] })))
    .filter((chart) => chart.series.length);
  if (!charts.length) { $("#steps").remove(); return; }
  $("#steps .note").append(`Checkpoints of ${run}: readable accuracy with 95% intervals.${others.length ? ` Those of ${others.join(", ")} have no place on this axis.` : ""}`);
  $("#steps .charts").append(...charts.map((chart) => new IntervalChart(chart).node));
}

// ------------------------------------------------------------------------------------------------------------- tables

function tables() {
  const notes = [comparison.caption, ...comparison.notes.map((note) => `${note}.`)];
  $("#tables > .note").append(...notes.map((note) => el("span", { class: "line" }, note)));
  const show = (name) => {
    const own = comparison.tables.filter((table) => table.metric === name);
    const faults = own.some((table) => table.printed) ? comparison.faults : [];
    $("#tables .tables").replaceChildren(...own.flatMap((table) => [el("h3", {}, table.title), el("div", { class: "scroll" }, dataTable(table))]),
      ...faults.map((fault) => el("p", { class: "note" }, fault)));
  };
  $("#tables .tools").append(segmented("Measure of the tables", comparison.metrics.map(([name]) => [name, shortTitle(name)]), metric, show));
  show(metric);
}

// ------------------------------------------------------------------------------------------------------------ answers

function differingAnswers() {
  const { pairs } = answers;
  if (!pairs.length) { $("#answers").remove(); $(".skip").remove(); return; }
  const problems = Object.entries(answers.problems).map(([suite, problem]) => `${suite} is not shown: ${problem}.`);
  const left = answers.left_out ? [`${plural(answers.left_out, "row")} did not fit in the page.`] : [];
  $("#answers > .note").append(...[`Of the rows that one of two models has right (readable) and the other wrong, up to ${answers.per_cell} of each kind and task are`
    + ` drawn at random in each direction, by seed ${answers.seed}: they show how answers differ, and not how often. Of several completions the first is shown.`,
    ...left, ...problems].map((note) => el("span", { class: "line" }, note)));
  const show = (index) => {
    const pair = pairs[index];
    const direction = (gained) => {
      const right = pair.models[gained ? 1 : 0], wrong = pair.models[gained ? 0 : 1];
      const rows = pair.rows.filter((row) => row.gained === gained);
      return [el("h3", {}, `${right} is right, ${wrong} is not: ${plural(gained ? pair.gained : pair.lost, "row")}, ${rows.length} shown`), rows.map((row) => pairCard(pair, row))];
    };
    $("#cards").replaceChildren(...[true, false].flatMap(direction).flat(Infinity));
  };
  $("#answers .tools").append(segmented("Models", pairs.map((pair, i) => [i, `${pair.models[0]} → ${pair.models[1]}`]), 0, show));
  show(0);
}

function pairCard(pair, row) {
  const side = (completion, i) => {
    const group = { ...row, id: `${row.row}, ${pair.models[i]}`, missing: [...row.missing], completions: [completion] };
    const facts = [completion.readable ? "right" : "wrong", `score ${number(completion.score)}`];
    return el("div", { class: `side-answer ${completion.readable ? "right" : "wrong"}` },
      el("h4", {}, el("span", { class: "mark", "aria-hidden": "true" }, completion.readable ? "✓" : "✗"), pair.models[i], el("small", {}, facts.join(" · "))),
      imageFigures(group, answers.images),
      el("div", { class: "text" }, completion.text || "(empty)"),
      el("div", { class: "facts" }, completion.strict ? null : el("span", { class: "reason" }, `strict: ${(completion.reason || "").replaceAll("_", " ")}`), !completion.finished && el("span", { class: "reason" }, "cut off"),
        completion.samples > 1 && el("span", {}, `first of ${completion.samples}`)));
  };
  return el("article", { class: "card", tabindex: 0, "aria-label": `${row.kind} ${row.task}, ${row.row}` },
    el("header", {}, el("b", {}, `${row.kind} ${row.task}`), el("span", {}, DOMAINS[row.domain]), el("span", {}, row.suite), el("code", {}, row.row)),
    el("p", { class: "prompt" }, row.prompt), el("p", { class: "answer" }, el("span", {}, "Solution"), row.solution),
    el("div", { class: "pair" }, row.completions.map(side)));
}

// ------------------------------------------------------------------------------------------------------------ settings

function settings() {
  const differs = (name) => new Set(comparison.models.map((model) => JSON.stringify(model.settings[name]))).size > 1;
  const names = [...new Set(comparison.models.flatMap((model) => Object.keys(model.settings)))];
  $("#settings").append(el("div", { class: "scroll" }, el("table", { class: "plain data" },
    el("thead", {}, el("tr", {}, ["", ...MODELS].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, names.map((name) => el("tr", { class: differs(name) ? "differs" : "" }, el("th", { scope: "row" }, name), comparison.models.map((model) => el("td", { class: "setting" }, JSON.stringify(model.settings[name])))))))));
}

overview();
accuracy();
steps();
tables();
differingAnswers();
settings();
finish();
