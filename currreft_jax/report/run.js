
const { runs, rollouts, beforeAfter } = DATA;
const run = runs[0];

// ----------------------------------------------------------------------------------------------------------- overview

function overview() {
  const { config, stages } = run;
  const facts = [config.name, config.method, config.model && config.model.path, plural(stages.length, "stage")];
  if (config.seed !== undefined) facts.push(`seed ${config.seed}`);
  $("#overview .lead").append(facts.filter(Boolean).join(" · "));
  $("#overview .tiles").append(...stages.map(tile));
  $("#overview .note").append(...overviewNotes());
}

/** Says what the large numbers are. */
function overviewNotes() {
  const notes = ["The large number is the mean over the last tenth of a stage's steps, on the rows that it trains on; arrows lead there from the mean over the first tenth."];
  if (run.stages.some((stage) => stage.metrics.reward)) {
    const weights = Object.entries((run.config.rewards || {}).weights || {}).filter(([, weight]) => weight > 0);
    const sum = weights.map(([name, weight]) => (weight === 1 ? name : `${number(weight)} × ${name}`)).join(" + ");
    notes.push(`A completion's reward is ${sum ? `${sum}, at most ${number(weights.reduce((total, [, weight]) => total + weight, 0))}` : "a weighted sum"}.`);
    if (run.stages.length > 1) notes.push("Each stage asks other questions, so its reward is no measure of the stage before it: whether the model has improved is below, under "
      + `${beforeAfter.comparisons.length ? "Before and after, and under " : ""}Forgetting.`);
  }
  if (run.stages.some((stage) => !stage.metrics.reward && stage.metrics.loss)) notes.push("Supervised stages have a loss instead: lower is better.");
  if (run.stages.some((stage) => stage.metrics.kl)) notes.push("KL is how far the model has moved from its reference, which is the base unless a setting names another; entropy is how undecided it is about a token, 0 where it is certain.");
  if (beforeAfter.problem) notes.push(`There are no answers before and after training to show: ${beforeAfter.problem}.`);
  return notes.join(" ");
}

function tile(stage) {
  const known = (name) => (stage.metrics[name] || []).filter((value) => value !== null);
  const startAndEnd = (name) => {
    const values = known(name);
    const tenth = Math.max(1, Math.round(values.length / 10));
    return values.length ? [mean(values.slice(0, tenth)), mean(values.slice(-tenth))] : null;
  };
  const lastDone = stage.steps.length ? stage.steps[stage.steps.length - 1] : 0;
  const main = startAndEnd("reward") ? "reward" : "loss";
  const pairs = [["accuracy", "rewards/accuracy/mean"], ["format", "rewards/format/mean"], ["KL, nats", "kl"],
    ["entropy, nats", "entropy"], ["length, tokens", "completions/mean_length"]];
  const seconds = known("step_time").reduce((sum, value) => sum + value, 0) * stage.steps_per_point;
  const rows = pairs.filter(([, name]) => startAndEnd(name)).map(([title, name]) => [title, startAndEnd(name).map(number).join(" → ")]);
  if (seconds) rows.push(["training time", duration(seconds)]);
  return el("article", { class: "tile" },
    el("h3", {}, stage.name, el("span", {}, `${lastDone.toLocaleString("en")} of ${plural(stage.planned_steps, "step")}`)),
    startAndEnd(main) && el("div", { class: "big", title: "means over the first and the last tenth of the steps" },
      startAndEnd(main)[1].toFixed(2), el("small", {}, `${main}, from ${startAndEnd(main)[0].toFixed(2)}`)),
    el("div", { class: "progress" }, progressBar(lastDone / Math.max(1, stage.planned_steps))),
    el("dl", { class: "pairs" }, rows.map(([title, value]) => [el("dt", {}, title), el("dd", {}, value)])));
}

// --------------------------------------------------------------------------------------------------- before and after

function beforeAndAfter() {
  const { comparisons, seed, left_out: leftOut } = beforeAfter;
  if (!comparisons.length) { $("#before-after").remove(); return; }
  const show = (index) => {
    const compared = comparisons[index], { improved, worsened, equal, rows } = compared;
    const end = `${compared.stage}, step ${compared.step.toLocaleString("en")}`;
    const notes = [`Greedy answers to held-out rows: before is the base model, after is the model of ${end}.`
      + (compared.kept_step === compared.step ? "" : ` The forgetting gate has kept that of step ${compared.kept_step.toLocaleString("en")} instead.`),
    `Of ${plural(improved + worsened + equal, "recorded row")} the reward has risen for ${improved}, fallen for ${worsened}, and is the same for ${equal}.`
      + (rows.length ? ` ${rows.length} of those that changed are shown, drawn by seed ${seed} whether better or worse, the tasks in turn.` : "")];
    if (runs.length > 1) notes.push(`They are from ${run.label}.`);
    if (leftOut) notes.push(`${plural(leftOut, "row")} did not fit in the page.`);
    $("#before-after > .note").replaceChildren(...notes.map((note) => el("span", { class: "line" }, note)));
    $("#before-after .cards").replaceChildren(...rows.map((row) => changeCard(row, end)));
  };
  const last = comparisons.length - 1;
  const options = comparisons.map((compared, i) => [i, setTitle(compared.held_out) + (ofStage(compared.held_out) === compared.stage ? "" : `, after ${compared.stage}`)]);
  $("#before-after .tools").append(segmented("Rows and the stage whose end is shown", options, last, show));
  show(last);
}

/** A row with both answers; the side of the higher reward is marked. */
function changeCard(row, end) {
  const improved = row.difference > 0;
  const change = el("span", { class: improved ? "up" : "down" }, `${improved ? "▲ improved" : "▼ worsened"}, ${signed(row.difference, 2)}`);
  const side = (completion, i) => el("div", { class: `side-answer ${(i === 1) === improved ? "right" : "wrong"}` },
    el("h4", {}, completion.name, el("small", {}, [i ? end : "base", `reward ${number(completion.reward)}`].join(" · "))),
    el("div", { class: "text" }, completion.text || "(empty)"), scoreFacts(completion));
  return el("article", { class: "card change", tabindex: 0, "aria-label": `${row.kind} ${row.task}, ${row.id}: ${improved ? "improved" : "worsened"}` },
    el("header", {}, el("b", {}, `${row.kind} · ${row.task}`), change, el("code", {}, row.id)),
    el("div", { class: "body" }, el("div", { class: "side" }, imageFigures(row, beforeAfter.images)),
      el("div", {}, el("p", { class: "prompt" }, row.prompt), el("p", { class: "answer" }, el("span", {}, "Right answer"), row.solution),
        el("div", { class: "pair" }, row.completions.map(side)))));
}

/** The parts of a completion's reward, and the reasons for zeros. */
function scoreFacts(completion, ...others) {
  return el("div", { class: "facts" }, Object.entries(completion.parts).map(([name, value]) => el("span", {}, `${name} ${number(value)}`)),
    Object.entries(completion.reasons).map(([name, reason]) => el("span", { class: "reason" }, `${name}: ${reason.replaceAll("_", " ")}`)),
    !completion.finished && el("span", { class: "reason" }, "truncated"), others);
}

// ------------------------------------------------------------------------------------------------------------- curves

// Heading, then panels: title, unit, and metrics as [key, label] or as a key of docs/metrics.md, whose word in capitals
// stands for any name, the label.
const PANELS = [
  ["Reward", [
    ["Reward", "", [["reward", "all"], "reward/TASK"]],
    ["Reward components", "", ["rewards/NAME/mean"]],
    ["Spread of rewards in a group", "standard deviation", [["reward_std", "mean over groups"]]],
    ["Held-out reward", "", ["held_out/STAGE/reward"]],
  ]],
  ["Policy", [
    ["KL to the reference", "nats", [["kl", "KL"]]],
    ["Entropy", "nats", [["entropy", "entropy"]]],
    ["Completion length", "tokens", [["completions/max_length", "max"], ["completions/mean_length", "mean"], ["completions/min_length", "min"]]],
    ["Reasons for zero reward", "fraction of completions", ["parse/REASON"]],
    ["Zero variance and truncation", "fraction", [["frac_reward_zero_std", "groups of equal rewards"], ["completions/clipped_ratio", "truncated completions"]]],
    ["Loss", "", [["loss", "loss"]]],
    ["Gradient norm", "", [["grad_norm", "before clipping"]]],
    ["Learning rate", "", [["learning_rate", "rate"]]],
    ["Clip ratio", "fraction", [["clip_ratio/high_mean", "high mean"], ["clip_ratio/low_mean", "low mean"]]],
    ["Sampler-trainer log-prob difference", "nats", [["sampling/sampling_logp_difference/max", "max"], ["sampling/sampling_logp_difference/mean", "mean"]]],
    ["Importance-sampling ratio", "", [["sampling/importance_sampling_ratio/max", "max"], ["sampling/importance_sampling_ratio/mean", "mean"],
      ["sampling/importance_sampling_ratio/min", "min"]]],
  ]],
  ["Cost", [
    ["Padding", "fraction", [["padding/completion_waste", "completion"], ["padding/patch_waste", "patch"], ["padding/prompt_waste", "prompt"]]],
    ["Time", "seconds", [["step_time", "step"], ["time/decode", "decode"], ["time/prefix", "prefix"], ["time/reference", "reference"], ["time/score", "score"],
      ["time/update", "update"]]],
    ["Time between steps", "seconds", [["time/evaluate", "evaluate"], ["time/save", "save"]]],
    ["Throughput", "tokens/s", [["tokens_per_second", "all"], ["tokens_per_second/sampled", "sampled"], ["tokens_per_second/trained", "trained"]]],
    ["Tokens per step", "", [["num_step_tokens", "all"], ["num_completion_tokens", "sampled"], ["num_loss_tokens", "in the loss"]]],
    ["Model FLOPs utilization", "fraction", [["mfu", "MFU"]]],
    ["Peak memory", "GB", [["memory/peak_gb", "fullest device"]]],
    ["Compilations", "programs", [["compiles", "programs"]]],
  ]],
];
const MAX_CURVES = 6; // per panel
const UNSMOOTHED = /^learning_rate$/;
const charts = [];
let smoothing = 0.8;

const names = [...new Set(runs.flatMap((each) => each.stages.flatMap((stage) => Object.keys(stage.metrics))))];

const lastStep = (stage) => (stage.steps.length ? stage.steps[stage.steps.length - 1] : 0);
// Runs with the same stages are aligned at the start of each stage, others at their first step.
const longest = runs.reduce((most, each) => (each.stages.length > most.stages.length ? each : most));
const aligned = runs.every((each) => each.stages.every((stage, i) => stage.name === longest.stages[i].name));
const spans = runs.map((each) => each.stages.map((stage, i) =>
  (aligned ? Math.max(...runs.filter((other) => other.stages[i]).map((other) => lastStep(other.stages[i]))) : lastStep(stage))));
/** Steps before each stage of a run, on an axis of consecutive stages. */
const offsets = spans.map((list) => list.map((_, i) => list.slice(0, i).reduce((sum, span) => sum + span, 0)));
const LAST_STEP = Math.max(1, ...spans.map((list) => list.reduce((sum, span) => sum + span, 0)));

function curve(name, label, runIndex) {
  let segments = runs[runIndex].stages.map((stage, i) => {
    const values = stage.metrics[name] || [];
    const points = stage.steps.map((_, k) => k).filter((k) => values[k] !== null && values[k] !== undefined);
    const sparse = points.length < stage.steps.length / 2;
    return { x: points.map((k) => offsets[runIndex][i] + stage.steps[k]), y: points.map((k) => values[k]), sparse };
  });
  if (segments.every((segment) => segment.sparse)) segments = [{ x: segments.flatMap((segment) => segment.x), y: segments.flatMap((segment) => segment.y), sparse: true }];
  return { label, run: runIndex, exact: UNSMOOTHED.test(name), segments: segments.filter((segment) => segment.x.length) };
}

/** The metrics of an entry of a panel that the runs have, as [name, label, key of docs/metrics.md]. */
function metricsOf(entry) {
  if (Array.isArray(entry)) return names.includes(entry[0]) ? [[...entry, entry[0]]] : [];
  const [start, end] = entry.split(/[A-Z]+/);
  return names.filter((name) => name.startsWith(start) && name.endsWith(end) && name.length > start.length + end.length)
    .map((name) => [name, name.slice(start.length, name.length - end.length).replaceAll("_", " "), entry]);
}

/** A panel of a single run shows several metrics; a panel of compared runs shows one metric, with a curve per run. */
function panels() {
  const used = new Set();
  const found = PANELS.map(([heading, list]) => [heading, list.flatMap(([title, unit, wanted]) => {
    const lines = wanted.flatMap(metricsOf);
    lines.forEach(([name]) => used.add(name));
    if (runs.length === 1) return lines.length ? [{ title, unit, keys: [...new Set(lines.map(([, , key]) => key))], lines: lines.map(([name, label]) => curve(name, label, 0)) }] : [];
    return lines.map(([name, label]) => ({
      title: lines.length > 1 ? `${title}: ${label}` : title, unit, keys: [name],
      lines: runs.map((each, i) => curve(name, each.label, i)),
    }));
  })]);
  const others = names.filter((name) => !used.has(name) && !/^held_out\//.test(name)).sort();
  found.push(["Other metrics", others.map((name) => ({ title: name, unit: "", keys: [], lines: runs.map((each, i) => curve(name, runs.length > 1 ? each.label : "", i)) }))]);
  return found.filter(([, list]) => list.length);
}

/** Bias-corrected exponential moving average, restarted at each stage. */
function smoothed({ x, y }, weight) {
  let sum = 0, total = 0;
  return { x, y: y.map((value) => { sum = weight * sum + (1 - weight) * value; total = weight * total + 1 - weight; return sum / total; }) };
}

/** Averages the points of each pixel. */
function perPixel({ x, y }, toPixel, width) {
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

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}

/** The stage and step at a position of the axis. */
function stageAndStep(x) {
  const before = offsets[0];
  let i = before.length - 1;
  while (i > 0 && before[i] >= x) i--;
  const stage = run.stages[i];
  const to = x - before[i];
  const span = stage.steps_per_point > 1 ? `steps ${Math.max(1, to - stage.steps_per_point + 1)}–${to}` : `step ${to}`;
  return run.stages.length > 1 ? `${stage.name}, ${span}` : span;
}

/** The curves that fit in a panel: if there are too many, those with the largest means. */
function topCurves(panel) {
  const curves = panel.lines.filter((line) => line.segments.length);
  if (panel.lines.length <= MAX_CURVES) return curves;
  const weight = (line) => mean(line.segments.flatMap((segment) => segment.y));
  return curves.sort((a, b) => weight(b) - weight(a)).slice(0, MAX_CURVES);
}

/** The limits of a vertical axis that shows these values, with 0 if it is near. */
function axisLimits(values) {
  let low = Infinity, high = -Infinity;
  for (const y of values) { if (y < low) low = y; if (y > high) high = y; }
  if (low >= 0 && (low < 0.35 * high || high <= 1)) low = 0;
  if (!(high > low)) high = low + (Math.abs(low) || 1);
  return [low, high + 0.04 * (high - low)];
}

class Chart {
  constructor(panel) {
    this.panel = panel;
    this.visible = false;
    this.curves = topCurves(panel).map((line, i) => (
      { line, value: el("b"), dash: `d${runs.length > 1 ? line.run % 4 : 0}`, colour: `var(--s${runs.length > 1 ? line.run % 8 : i})` }));
    this.steps = [...new Set(this.curves.flatMap(({ line }) => line.segments.flatMap((segment) => segment.x)))].sort((a, b) => a - b);
    this.subtitle = el("small", {}, panel.unit);
    this.plot = svg("svg", { tabindex: 0, role: "img", onpointermove: (event) => this.#onPointer(event), onpointerleave: () => moveTo(null),
      onblur: () => moveTo(null), onkeydown: (event) => this.#onKey(event) });
    this.node = el("article", { class: "chart" }, this.#header(), this.#legend(), this.plot);
  }

  #header() {
    const enlarge = el("button", { type: "button", "aria-label": `Enlarge ${this.panel.title}`, "aria-pressed": "false", onclick: () => {
      enlarge.setAttribute("aria-pressed", String(this.node.classList.toggle("wide")));
    } }, "⤢");
    return el("header", {}, el("h4", {}, this.panel.title, this.subtitle, metricKeys(this.panel.keys)), enlarge);
  }

  #legend() {
    const dropped = this.panel.lines.length - this.curves.length;
    return el("div", { class: "legend" },
      this.curves.map(({ line, value, dash, colour }) => el("span", { class: dash, "--c": colour }, el("i"), line.label && `${line.label} `, value)),
      runs.length === 1 && dropped > 0 && el("span", {}, `and ${dropped} smaller`));
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.plot;
    if (!width) return;
    for (const curve of this.curves) {
      curve.parts = curve.line.segments.map((raw) => (
        { raw, line: smoothing && !raw.sparse && !curve.line.exact ? smoothed(raw, smoothing) : raw }));
    }
    const [low, high] = axisLimits(this.curves.flatMap((curve) => curve.parts.flatMap((part) => part.raw.y)));
    const marks = ticks(low, high, height > 200 ? 7 : 4);
    const left = 12 + 6.3 * Math.max(3, ...marks.map((mark) => number(mark).length));
    const frame = { left, right: width - 8, top: run.stages.length > 1 ? 18 : 8, bottom: height - 20, width, height };
    this.toX = (step) => left + ((step - 1) / Math.max(1, LAST_STEP - 1)) * (frame.right - left);
    const toY = (value) => frame.top + ((high - value) / (high - low)) * (frame.bottom - frame.top);
    this.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.cross = svg("line", { class: "cross", y1: frame.top, y2: frame.bottom, visibility: "hidden" });
    this.plot.replaceChildren(...stageMarks(this.toX, frame.top, frame.bottom, frame.right), ...this.#axes(frame, marks, toY),
      ...this.curves.map((curve) => this.#curve(curve, width, toY)), this.cross);
    this.showValues(cursor);
  }

  #axes(frame, marks, toY) {
    const steps = ticks(1, LAST_STEP, Math.max(3, Math.floor(frame.width / 90))).filter(Number.isInteger);
    return [
      ...marks.flatMap((mark) => [svg("line", { class: "grid", x1: frame.left, x2: frame.right, y1: toY(mark), y2: toY(mark) }),
        svg("text", { class: "axis", x: frame.left - 7, y: toY(mark) + 3.5, "text-anchor": "end" }, number(mark))]),
      ...steps.map((step) => svg("text", { class: "axis", x: this.toX(step), y: frame.height - 5, "text-anchor": "middle" }, step.toLocaleString("en"))),
    ];
  }

  #curve({ parts, dash, colour }, width, toY) {
    const path = (points) => {
      const { x, y } = perPixel(points, this.toX, width);
      return x.map((step, i) => `${i ? "L" : "M"}${this.toX(step).toFixed(1)} ${toY(y[i]).toFixed(1)}`).join("");
    };
    return svg("g", { class: dash, "--c": colour }, parts.map(({ raw, line }) => [
      line !== raw && svg("path", { class: "raw", d: path(raw) }),
      svg("path", { class: "line", d: path(line) }),
      raw.sparse && raw.x.map((step, i) => svg("circle", { class: "dot", r: 3, cx: this.toX(step), cy: toY(raw.y[i]) }))]));
  }

  /** Shows the values at a step of the axis, or the last ones if it is null. */
  showValues(step) {
    if (!this.cross) return;
    const spoken = [];
    for (const { line, value, parts } of this.curves) {
      const steps = line.segments.flatMap((segment) => segment.x);
      if (!steps.length) continue;
      const index = step === null ? steps.length - 1 : nearest(steps, step);
      const y = parts.flatMap((part) => part.line.y)[index];
      const raw = line.segments.flatMap((segment) => segment.y)[index];
      value.textContent = step !== null && y !== raw ? `${number(y)} (${number(raw)})` : number(y);
      spoken.push(`${line.label} ${value.textContent}`);
    }
    this.subtitle.textContent = step === null ? this.panel.unit : stageAndStep(step);
    this.cross.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) { this.cross.setAttribute("x1", this.toX(step)); this.cross.setAttribute("x2", this.toX(step)); }
    this.plot.setAttribute("aria-label", `${this.panel.title}${step === null ? "" : `, ${stageAndStep(step)}`}: ${spoken.join(", ")}`);
  }

  #onPointer(event) {
    if (!this.steps.length || !this.toX) return;
    const offset = event.clientX - this.plot.getBoundingClientRect().left - this.toX(1);
    const fraction = offset / Math.max(1, this.toX(LAST_STEP) - this.toX(1));
    moveTo(this.steps[nearest(this.steps, 1 + fraction * (LAST_STEP - 1))]);
  }

  #onKey(event) {
    const last = this.steps.length - 1;
    const now = cursor === null ? last : nearest(this.steps, cursor);
    const jump = Math.max(1, Math.round(this.steps.length / 20));
    const target = { ArrowLeft: now - 1, ArrowRight: now + 1, PageUp: now - jump, PageDown: now + jump, Home: 0, End: last }[event.key];
    if (target === undefined || !this.steps.length) return;
    event.preventDefault();
    moveTo(this.steps[Math.max(0, Math.min(last, target))]);
  }
}

function stageMarks(toPixel, top, bottom, right) {
  if (run.stages.length < 2) return [];
  const shown = run.stages.map((_, i) => i).filter((i) => spans[0][i]);
  const places = shown.map((i) => [i ? toPixel(offsets[0][i] + 0.5) : toPixel(1), Math.min(right, toPixel(offsets[0][i] + spans[0][i] + 0.5)), run.stages[i].name]);
  const bands = places.filter((_, k) => shown[k] % 2).map(([x1, x2]) => svg("rect", { class: "band", x: x1, y: top, width: Math.max(0, x2 - x1), height: bottom - top }));
  return [...bands, ...stageTitles(places, top - 12, top, bottom)];
}

let cursor = null, moving = false;
function moveTo(x) {
  if (x === cursor) return;
  cursor = x;
  if (moving) return;
  moving = true;
  requestAnimationFrame(() => { moving = false; charts.filter((each) => each.visible).forEach((each) => each.showValues(cursor)); });
}

function curves() {
  runs.forEach((each) => (each.label = runs.filter((other) => other.name === each.name).length > 1 ? each.path : each.name));
  const range = $("#smoothing");
  const shown = $("#curves output");
  const notes = ["Bold lines are smoothed, faint ones are not. The number beside a name is the last smoothed value; under the pointer that of the step, with the exact one in brackets."];
  const binned = run.stages.filter((stage) => stage.steps_per_point > 1);
  if (binned.length) notes.push(`A point covers several steps: ${binned.map((stage) => `${stage.steps_per_point} in ${stage.name}`).join(", ")}.`);
  if (runs.length > 1) {
    notes.push(aligned ? "Runs are aligned at the start of each stage." : `The runs have different stages and are aligned at their first step; the stages marked are those of ${run.label}.`);
    $("#curves .runs").append(...runs.map((each, i) => el("span", { class: `d${i % 4}`, "--c": `var(--s${i % 8})` }, el("i"), each.label)));
  }
  $("#curves > .note").append(notes.join(" "));
  const visibility = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const observed = charts.find((each) => each.node === entry.target);
    observed.visible = entry.isIntersecting;
    if (observed.visible) observed.draw();
  }), { rootMargin: "200px" });
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => {
    const observed = charts.find((each) => each.node === entry.target);
    if (observed.visible) observed.draw();
  }));
  for (const [heading, list] of panels()) {
    const made = list.map((panel) => new Chart(panel));
    charts.push(...made);
    $("#curves").append(el("h3", {}, heading), el("div", { class: "charts" }, made.map((each) => each.node)));
    made.forEach((each) => { visibility.observe(each.node); sizes.observe(each.node); });
  }
  if (!charts.length) $("#curves").append(el("p", { class: "empty" }, "No step has been written yet."));
  const smooth = () => {
    smoothing = Number(range.value);
    shown.textContent = smoothing.toFixed(2);
    charts.filter((each) => each.visible).forEach((each) => each.draw());
  };
  range.addEventListener("input", smooth);
  smooth();
}

// --------------------------------------------------------------------------------------------- stability and held-out rows

const stageBounds = () => (run.stages.length > 1 ? run.stages.map((stage, i) => [offsets[0][i], stage.name]) : []);

/** Moving means of a metric with one standard deviation to each side: [x, mean, low, high], over `span` points of a stage. */
function movingSpread(name, runIndex, span) {
  return runs[runIndex].stages.flatMap((stage, i) => {
    const values = stage.metrics[name] || [];
    const known = stage.steps.map((step, k) => [offsets[runIndex][i] + step, values[k]]).filter(([, value]) => value !== null && value !== undefined);
    return known.map(([x], k) => {
      const window = known.slice(Math.max(0, k - span + 1), k + 1).map(([, value]) => value);
      const center = mean(window), spread = Math.sqrt(mean(window.map((value) => (value - center) ** 2)));
      return [x, center, center - spread, center + spread];
    }).slice(Math.min(span - 1, known.length - 1));
  });
}

function stability() {
  const wanted = [["rewards/accuracy/mean", "Accuracy"], ["reward", "Reward"]].filter(([name]) => runs.every((each) => each.stages.some((stage) => name in stage.metrics)));
  const span = Math.max(5, Math.round(LAST_STEP / 50));
  const charts = wanted.map(([name, title]) => ({ title, unit: "of sampled completions", keys: [name], bounds: stageBounds(),
    series: runs.map((each, i) => ({ label: each.label, points: movingSpread(name, i, span) })).filter(({ points }) => points.length > 1) })).filter(({ series }) => series.length);
  if (!charts.length) { $("#stability").remove(); return; }
  $("#stability .note").append(`Means over ${span} points of a stage; the band is one standard deviation between them to each side, the wider the less stable.`
    + (runs.length > 1 ? (aligned ? "" : ` The stages marked are those of ${run.label}.`) : " Add runs with --compare, such as one without a curriculum."));
  $("#stability .charts").append(...charts.map((chart) => new IntervalChart(chart).node));
}

/** Wilson's 95% interval of a share of rows. */
function wilson(share, rows) {
  const z2 = 1.96 ** 2, center = (share + z2 / (2 * rows)) / (1 + z2 / rows);
  const half = (1.96 / (1 + z2 / rows)) * Math.sqrt((share * (1 - share)) / rows + z2 / (4 * rows * rows));
  return [Math.max(0, center - half), Math.min(1, center + half)];
}

const OUT_OF_DOMAIN = "/out_of_domain";  // ends the names of sets of rows out of a stage's domain
const isOut = (name) => name.endsWith(OUT_OF_DOMAIN);
const ofStage = (name) => (isOut(name) ? name.slice(0, -OUT_OF_DOMAIN.length) : name);
const setTitle = (name) => (isOut(name) ? `Out of the domain of ${ofStage(name)}` : `Rows of ${name}`);

/** Points of a run's held-out rows: the pass rate with Wilson's interval where all evaluations have it, else the reward. */
function heldOutPoints(runIndex, name, passes) {
  const { times, names: sets, cells } = runs[runIndex].matrix;
  const k = sets.indexOf(name), order = runs[runIndex].stages.map((stage) => stage.name);
  return times.flatMap(([stage, step], i) => {
    const cell = k < 0 ? null : cells[i][k];
    if (!cell || (stage && !order.includes(stage))) return [];
    const x = stage ? offsets[runIndex][order.indexOf(stage)] + step : 0;
    return [passes ? [x, cell.passed, ...wilson(cell.passed, cell.rows)] : [x, cell.reward, cell.reward - cell.half_interval, cell.reward + cell.half_interval]];
  });
}

function heldOut() {
  const sets = [...new Set(runs.flatMap((each) => each.matrix.names))];
  const passes = runs.every((each) => each.matrix.cells.every((row) => row.every((cell) => !cell || cell.passed !== null)));
  const unit = passes ? "share of rows with full accuracy" : "mean reward";
  const lines = runs.flatMap((each, i) => sets.map((name) => ({ run: i, set: name, points: heldOutPoints(i, name, passes) }))).filter(({ points }) => points.length > 1);
  if (!lines.length) { $("#held-out").remove(); return; }
  const linesOf = (name) => lines.filter(({ set }) => set === name);
  const key = `held_out/STAGE/${passes ? "pass" : "reward"}`, outKey = key.replace("STAGE", "STAGE/out_of_domain");
  const inAndOut = sets.filter(isOut).map((name) => ({ title: `In and out of the domain of ${ofStage(name)}`, keys: [key, outKey],
    series: [[ofStage(name), "in domain"], [name, "out of domain"]].flatMap(([set, label]) => linesOf(set).map(({ points }) => ({ label, points }))) }));
  const charts = runs.length > 1 ? sets.map((name) => ({ title: setTitle(name), keys: [isOut(name) ? outKey : key], series: linesOf(name).map(({ run: i, points }) => ({ label: runs[i].label, points })) }))
    : [...inAndOut, { title: "All stages", keys: [key], series: lines.filter(({ set }) => !isOut(set)).map(({ set, points }) => ({ label: `rows of ${set}`, points })) }];
  $("#held-out .note").append("Evaluations every logging.evaluate_every steps, with 95% intervals. The rows of a stage are in the domain of training while it is trained, and after it."
    + (sets.some(isOut) ? "" : " For rows out of domain, name them in a stage's out_of_domain, or evaluate checkpoints (docs/report.md)."));
  $("#held-out .charts").append(...charts.filter(({ series }) => series.length).map((chart) => new IntervalChart({ ...chart, unit, bounds: stageBounds(), range: passes ? [0, 1] : null }).node));
}

// --------------------------------------------------------------------------------------------------------- forgetting

const MEASURES = [["reward", "Reward"], ["accuracy", "Accuracy"], ["format", "Format"], ["passed", "Pass rate"], ["greedy", "Greedy reward"]];

function forgetting() {
  const measured = runs.filter((each) => each.matrix.times.length);
  if (!measured.length) { $("#forgetting").remove(); return; }
  $("#forgetting .note").append("Held-out rows of each stage, evaluated after each stage: mean ± half its 95% interval, and the difference from the first"
    + " evaluation, which the shade shows. A frame marks the rows of the trained stage. ▼: significantly below the best earlier"
    + " evaluation.");
  const tables = el("div");
  const show = (name) => tables.replaceChildren(...measured.flatMap((each) =>
    [runs.length > 1 && el("h3", {}, each.label), el("div", { class: "scroll" }, matrixTable(each.matrix, name)),
      ...each.matrix.notes.map((note) => el("p", { class: "note" }, note))].filter(Boolean)));
  $("#forgetting .tools").append(segmented("Measure", MEASURES, "reward", show));
  $("#forgetting").append(tables);
  show("reward");
}

function matrixTable({ times, names: sets, cells }, measure) {
  const first = sets.map((_, k) => cells.map((row) => row[k]).find((cell) => cell && cell[measure] !== null));
  const differences = cells.flatMap((row) => row.map((cell, k) => (cell && cell[measure] !== null ? cell[measure] - first[k][measure] : 0)));
  const largest = Math.max(1e-9, ...differences.map(Math.abs));
  const body = times.map(([stage, step], i) => el("tr", {}, el("th", { scope: "row" }, stage ? `${stage}, step ${step}` : "base model"),
    cells[i].map((cell, k) => {
      if (!cell || cell[measure] === null) return el("td", { class: "none" }, "–");
      const change = cell[measure] - first[k][measure];
      const shade = `color-mix(in srgb, var(${change >= 0 ? "--good" : "--bad"}) ${Math.round((34 * Math.abs(change)) / largest)}%, var(--surface))`;
      return el("td", { class: stage === sets[k] ? "trained" : "", "--cell": shade },
        el("b", {}, cell[measure].toFixed(3)), measure === "reward" && el("small", {}, `± ${cell.half_interval.toFixed(3)}`),
        el("div", {}, cell === first[k] ? plural(cell.rows, "row") : signed(change, 3),
          measure === "reward" && cell.regressed_from !== null && el("span", { class: "regressed" }, `  ▼ from ${cell.regressed_from.toFixed(3)}`)));
    })));
  return el("table", { class: "matrix" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "after"), sets.map((name) => el("th", { scope: "col" }, isOut(name) ? `${ofStage(name)}, out of domain` : name)))),
    el("tbody", {}, body));
}

// ----------------------------------------------------------------------------------------------------------- rollouts

const PAGE = 10;
const ORDERS = {
  trained: ["training order", (a, b) => a.index - b.index],
  low: ["lowest reward first", (a, b) => a.mean - b.mean || a.index - b.index],
  high: ["highest reward first", (a, b) => b.mean - a.mean || a.index - b.index],
  spread: ["widest reward range first", (a, b) => b.spread - a.spread || a.index - b.index],
};
const filter = { stage: new Set(), task: new Set(), kind: new Set(), reason: "", steps: [null, null], reward: [null, null], text: "", order: "trained" };
let groups = [], found = [], pageIndex = 0, shading = "ratio";

function prepareGroups() {
  groups = rollouts.groups.map((group, index) => {
    const rewards = group.completions.map((completion) => completion.reward);
    group.completions.forEach((completion) => (completion.text = completion.text === undefined ? completion.tokens.join("") : completion.text));
    return { ...group, index, stageName: run.stages[group.stage].name, mean: mean(rewards), spread: Math.max(...rewards) - Math.min(...rewards),
      text: [group.id, group.prompt, group.solution, ...group.completions.map((completion) => completion.text)].join("\n").toLowerCase() };
  });
}

const within = (value, [low, high]) => (low === null || value >= low) && (high === null || value <= high);
const reasonsOf = (completion) => Object.values(completion.reasons);
function matches(completion) {
  const reasons = reasonsOf(completion);
  return within(completion.reward, filter.reward) && (!filter.reason || (filter.reason === "none" ? !reasons.length : reasons.includes(filter.reason.slice(1))));
}
const selectedIn = (set, value) => !set.size || set.has(value);

function search() {
  found = groups.filter((group) => selectedIn(filter.stage, group.stageName) && selectedIn(filter.task, group.task) && selectedIn(filter.kind, group.kind)
    && within(group.step, filter.steps) && group.text.includes(filter.text) && group.completions.some(matches)).sort(ORDERS[filter.order][1]);
  showPage(0);
}

function showPage(index) {
  const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
  pageIndex = Math.max(0, Math.min(last, index));
  const shown = found.slice(pageIndex * PAGE, (pageIndex + 1) * PAGE);
  leaveToken();
  $("#cards").replaceChildren(...(shown.length ? shown.map(card) : [el("p", { class: "empty" }, "No group matches the filters.")]));
  $("#count").textContent = `${plural(found.length, "group")} of ${groups.length.toLocaleString("en")}`;
  for (const pager of document.querySelectorAll("#rollouts .pager")) {
    const from = found.length ? pageIndex * PAGE + 1 : 0;
    pager.replaceChildren(
      el("button", { type: "button", "data-to": "previous", disabled: !pageIndex, onclick: () => turnPage(pager, -1) }, "← Previous"),
      el("span", {}, `${from}–${pageIndex * PAGE + shown.length}`),
      el("button", { type: "button", "data-to": "next", disabled: pageIndex === last, onclick: () => turnPage(pager, 1) }, "Next →"));
  }
}

function turnPage(pager, by) {
  showPage(pageIndex + by);
  const same = pager.querySelector(by < 0 ? "[data-to=previous]" : "[data-to=next]");
  (same.disabled ? pager.querySelector("button:not(:disabled)") : same)?.focus({ preventScroll: true });
  if (pager.parentElement.classList.contains("end")) $("#count").scrollIntoView({ block: "center" });
}

function filters() {
  const form = $("#rollouts .filters");
  const chips = (key, title, values) => {
    const buttons = values.map((value) => el("button", { type: "button", class: "chip", "aria-pressed": "false", "data-value": value, onclick: (event) => {
      const on = !filter[key].delete(value) && filter[key].add(value);
      event.currentTarget.setAttribute("aria-pressed", String(Boolean(on)));
      search();
    } }, value, el("small", {}, groups.filter((group) => (key === "stage" ? group.stageName : group[key]) === value).length.toLocaleString("en"))));
    return values.length > 1 && el("fieldset", { "data-key": key }, el("legend", {}, title), el("div", { class: "options" }, buttons));
  };
  const range = (key, title, step) => {
    const input = (bound, name) => el("input", { type: "number", step, placeholder: name, "aria-label": `${title} ${name}`, oninput: (event) => {
      filter[key][bound] = event.target.value === "" ? null : Number(event.target.value);
      search();
    } });
    return el("fieldset", { "data-key": key }, el("legend", {}, title), el("div", { class: "options" }, input(0, "from"), el("span", {}, "–"), input(1, "to")));
  };
  const select = (key, title, options) => el("label", {}, el("span", {}, title),
    el("select", { "data-key": key, onchange: (event) => { filter[key] = event.target.value; search(); } }, options.map(([value, text]) => el("option", { value }, text))));
  const counts = new Map();
  for (const group of groups) for (const completion of group.completions) for (const reason of reasonsOf(completion)) counts.set(reason, (counts.get(reason) || 0) + 1);
  const reasons = [...counts].sort((a, b) => b[1] - a[1]);
  const unique = (key) => [...new Set(groups.map((group) => group[key]))];
  form.append(...[
    chips("stage", "Stage", unique("stageName")), chips("task", "Task", unique("task").sort()), chips("kind", "Kind", unique("kind")),
    range("steps", "Step", 1), range("reward", "Reward", "any"),
    select("reason", "Reason", [["", "any"], ["none", "no reason"], ...reasons.map(([reason, count]) => [`=${reason}`, `${reason.replaceAll("_", " ")} (${count.toLocaleString("en")})`])]),
    el("label", {}, el("span", {}, "Text"), el("input", { type: "search", placeholder: "in prompt or completion", oninput: (event) => { filter.text = event.target.value.toLowerCase(); search(); } })),
    select("order", "Order", Object.entries(ORDERS).map(([value, [text]]) => [value, text])),
    el("button", { type: "reset" }, "Clear")].filter(Boolean));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    Object.assign(filter, { stage: new Set(), task: new Set(), kind: new Set(), reason: "", steps: [null, null], reward: [null, null], text: "", order: "trained" });
    form.querySelectorAll(".chip").forEach((chip) => chip.setAttribute("aria-pressed", "false"));
    search();
  });
}

// Values in nats that shade tokens, and the value of the full shade.
const SHADINGS = {
  ratio: { title: "Log-ratio", needs: "reference", full: 3, value: (completion, i) => completion.logprobs[i] - completion.reference[i], signed: true,
    ends: ["−3 reference higher", "policy higher +3"] },
  surprisal: { title: "Surprisal", needs: "logprobs", full: 4, value: (completion, i) => -completion.logprobs[i], ends: ["0", "4 nats or more"] },
  entropy: { title: "Entropy", needs: "entropies", full: 2, value: (completion, i) => completion.entropies[i], ends: ["0", "2 nats or more"] },
};

function shadingControls() {
  const available = Object.keys(SHADINGS).filter((key) => groups.some((group) => group.completions.some((completion) => SHADINGS[key].needs in completion)));
  if (!available.length) return;
  const key = el("span", { class: "key" });
  const select = (name) => {
    shading = name;
    const style = SHADINGS[name];
    key.replaceChildren(...(style ? [style.ends[0], el("i", { class: style.signed ? "ratio" : "amount" }), style.ends[1]] : []));
    document.querySelectorAll("#cards .completion").forEach(shade);
  };
  $("#rollouts .tools").append(key, segmented("Token shading", [...available.map((name) => [name, SHADINGS[name].title]), ["none", "None"]], available[0], select));
  select(available[0]);
}

const completionOf = new WeakMap(); // list item -> completion

function shade(item) {
  const completion = completionOf.get(item), style = SHADINGS[shading];
  item.querySelectorAll(".text > span[data-i]").forEach((span) => {
    const value = style && style.needs in completion ? style.value(completion, Number(span.dataset.i)) : 0;
    const percent = Math.round(62 * Math.min(1, Math.abs(value) / (style ? style.full : 1)));
    const colour = style && style.signed ? (value > 0 ? "--accent" : "--bad") : "--s4";
    span.style.backgroundColor = percent > 2 ? `color-mix(in srgb, var(${colour}) ${percent}%, transparent)` : "";
  });
}

function card(group) {
  const label = `${group.stageName}, step ${group.step}, row ${group.row}: ${group.kind} ${group.task}`;
  const node = el("article", { class: "card", tabindex: 0, "aria-label": label, onkeydown: (event) => onCardKey(event, node) },
    el("header", {}, el("b", {}, `${group.stageName} · step ${group.step}`), el("span", {}, `row ${group.row}`), el("span", {}, `${group.kind} · ${group.task}`),
      el("span", {}, `mean reward ${group.mean.toFixed(2)}`), el("code", {}, group.id)),
    el("div", { class: "body" }, el("div", { class: "side" }, imageFigures(group, rollouts.images), el("p", { class: "prompt" }, group.prompt),
      el("p", { class: "answer" }, el("span", {}, "Solution"), group.solution)),
      el("ol", { class: "group", "aria-label": "Completions" }, group.completions.map((completion, g) => completionItem(group, completion, g, (on) => activate(node, on ? g : null))))));
  return node;
}

function activate(node, g) {
  if (g === null) delete node.dataset.active; else node.dataset.active = g;
  node.querySelectorAll(".predicted").forEach((box) => box.classList.toggle("active", box.dataset.g === String(g)));
}

function completionItem(group, completion, g, activated) {
  const tokens = completion.tokens.map((token, i) => {
    const end = token === "" && i === completion.tokens.length - 1;
    return el("span", { "data-i": i, class: end ? "end" : false }, end ? " end" : token);
  });
  const item = el("li", { class: `completion${matches(completion) ? "" : " dim"}`, tabindex: -1,
    "aria-label": `completion ${g + 1}, reward ${number(completion.reward)}, advantage ${signed(completion.advantage, 2)}: ${completion.text}`,
    onfocusin: () => activated(true), onfocusout: () => { activated(false); leaveToken(); }, onpointerenter: () => activated(true),
    onpointerleave: () => { activated(false); leaveToken(); }, onpointerover: (event) => {
      const span = event.target.closest("span[data-i]");
      if (span) showToken(item, Number(span.dataset.i)); else leaveToken();
    } },
    el("span", { class: "n" }, g + 1),
    el("div", { class: "reward" }, el("b", {}, completion.reward.toFixed(2)),
      el("small", { class: completion.advantage > 0 ? "up" : completion.advantage < 0 ? "down" : "", title: "advantage" }, signed(completion.advantage, 2))),
    el("div", {}, el("div", { class: "text" }, tokens.length ? tokens : completion.text),
      scoreFacts(completion, el("span", {}, plural(completion.tokens.length, "token")),
        el("button", { type: "button", "aria-expanded": "false", onclick: (event) => replay(event.currentTarget, `${group.replay_command}${g + 1}`) }, "replay"))));
  completionOf.set(item, completion);
  shade(item);
  return item;
}

function replay(button, command) {
  const shown = button.parentElement.parentElement.querySelector(".command");
  if (shown) shown.remove(); else button.parentElement.after(el("code", { class: "command" }, command));
  button.setAttribute("aria-expanded", String(!shown));
}

let token = null; // [list item, index] of the token that is shown
function showToken(item, i) {
  const completion = completionOf.get(item);
  leaveToken();
  item.querySelector(`span[data-i="${i}"]`).classList.add("now");
  token = [item, i];
  const values = [`log-prob ${number(completion.logprobs[i])}`];
  if (completion.reference) values.push(`reference ${number(completion.reference[i])}`, `log-ratio ${signed(completion.logprobs[i] - completion.reference[i], 3)}`);
  if (completion.entropies) values.push(`entropy ${number(completion.entropies[i])}`);
  $("#token").replaceChildren(el("code", {}, JSON.stringify(completion.tokens[i])), values.join(" · "));
  $("#token").hidden = false;
}
function leaveToken() {
  if (token) token[0].querySelector(".now")?.classList.remove("now");
  token = null;
  $("#token").hidden = true;
}

function onCardKey(event, node) {
  const item = event.target.closest(".completion");
  const items = [...node.querySelectorAll(".completion")];
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
    else if (along && completionOf.get(item).tokens.length) {
      const now = token && token[0] === item ? token[1] + along : along > 0 ? 0 : completionOf.get(item).tokens.length - 1;
      showToken(item, Math.max(0, Math.min(completionOf.get(item).tokens.length - 1, now)));
      item.querySelector(".now").scrollIntoView({ block: "nearest" });
    } else return;
  } else return;
  event.preventDefault();
}

function rolloutsSection() {
  if (!rollouts.counts.found) { $("#rollouts").remove(); $(".skip").remove(); return; }
  prepareGroups();
  const { shown, found: total, missing } = rollouts.counts;
  const notes = [shown < total
    ? `${shown.toLocaleString("en")} of ${plural(total, "group")} are in this page: of each stage the first, the last and`
      + " midpoints between others, as many as fit."
    : `All ${plural(total, "group")} are in this page.`,
  "Beside a completion stand its reward and, below, its advantage: how much better it is than the others of its group, where 0 is their mean."];
  if (runs.length > 1) notes.push(`They are from ${run.label}.`);
  if (missing) notes.push(`${plural(missing, "image")} could not be read.`);
  $("#rollouts .note").append(notes.join(" "));
  filters();
  search();
  shadingControls();
}

// ------------------------------------------------------------------------------------------- checkpoints and settings

function checkpoints() {
  const rows = runs.flatMap((each) => each.stages.flatMap((stage) => [
    ...stage.checkpoints.map(([step, size]) => [each.label, stage.name, `step ${step.toLocaleString("en")}`, size]),
    ...(stage.export ? [[each.label, stage.name, "exported model", stage.export]] : [])]));
  const columns = runs.length > 1 ? ["run", "stage", "item", "size"] : ["stage", "item", "size"];
  $("#checkpoints").append(rows.length
    ? el("div", { class: "scroll" }, el("table", { class: "plain" }, el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col", class: name === "size" ? "number" : "" }, name)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, (runs.length > 1 ? row.slice(0, 3) : row.slice(1, 3)).map((cell) => el("td", {}, cell)), el("td", { class: "number" }, bytes(row[3])))))))
    : el("p", { class: "note" }, "None yet."));
}

/** Flattens settings: `{a: [{b: 1}]}` -> `[["a[0].b", 1]]` */
function flatten(value, name = "") {
  if (Array.isArray(value) && value.some((item) => item && typeof item === "object")) return value.flatMap((item, i) => flatten(item, `${name}[${i}]`));
  if (value && typeof value === "object" && !Array.isArray(value)) {
    const keys = Object.keys(value);
    return keys.length ? keys.flatMap((key) => flatten(value[key], name ? `${name}.${key}` : key)) : [[name, "{}"]];
  }
  return [[name, typeof value === "string" ? value : JSON.stringify(value)]];
}

function settings() {
  const tables = runs.map((each) => new Map(flatten(each.config)));
  const keys = [...new Set(tables.flatMap((settings) => [...settings.keys()]))];
  const differs = (key) => tables.some((settings) => settings.get(key) !== tables[0].get(key));
  const sections = new Map();
  for (const key of keys) {
    const section = /[.[]/.test(key) ? key.split(/[.[]/)[0] : "general";
    sections.set(section, [...(sections.get(section) || []), key]);
  }
  const table = (list) => el("table", {}, runs.length > 1 && el("thead", {}, el("tr", {}, el("th"), runs.map((each) => el("th", { scope: "col" }, each.label)))),
    el("tbody", {}, list.map((key) => el("tr", { class: differs(key) ? "differs" : "" }, el("td", {}, key), tables.map((settings) => el("td", {}, settings.get(key) ?? "–"))))));
  const details = (title, list, open) => el("details", { open }, el("summary", {}, title, el("small", {}, plural(list.length, "setting"))), el("div", { class: "inside" }, table(list)));
  const differing = keys.filter(differs);
  $("#settings").append(...(runs.length > 1 ? [details("differences", differing, true)] : []), ...[...sections].map(([title, list]) => details(title, list, false)));
  const all = () => [...document.querySelectorAll("#settings details")];
  $("#settings .tools").append(el("button", { type: "button", onclick: () => { const open = all().some((each) => !each.open); all().forEach((each) => (each.open = open)); } }, "Open or close all"));
}

// --------------------------------------------------------------------------------------------------------------- page

overview();
curves();
beforeAndAfter();
stability();
heldOut();
forgetting();
rolloutsSection();
checkpoints();
settings();
finish();
