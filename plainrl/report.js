// What report.html does, section by section. Each draws its part of the data of the run that is shown, and is
// left out where the run has nothing for it. Completions are drawn by report_tokens.js, charts by
// report_curves.js; both stand before this file in the page.
"use strict";

const MOST_HITS = 50; // of a search that are listed

const run = () => data.runs[state.run];
const digits = number => typeof number === "number" ? number.toFixed(3) : "–"; // of a score
const oneOn = number => typeof number === "number" ? number + 1 : number; // people count from 1

// A flag's value.
const inWords = value =>
  value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);

// A select with a label. What `onchange` draws may put another one in its place: that gets the focus then.
function chooser(label, options, chosen, onchange, name = label) {
  const again = () => { onchange(select.value); document.getElementsByName(name)[0]?.focus(); };
  const option = ([value, text]) =>
    make("option", { value, selected: String(value) === String(chosen) }, text);
  const select = make("select", { name, onchange: again }, ...options.map(option));
  return make("label", {}, `${label} `, select);
}

function table(head, rows) {
  const cell = value => {
    const number = typeof value === "number";
    const content = value instanceof Node ? value : number ? short(value) : String(value ?? "–");
    return make("td", { class: number ? "number" : null, dir: "auto" }, content);
  };
  const names = head.map(name => make("th", { scope: "col" }, name));
  const lines = rows.map(row => make("tr", {}, ...row.map(cell)));
  return make("table", {}, make("thead", {}, make("tr", {}, ...names)), make("tbody", {}, ...lines));
}

// --- the head ----------------------------------------------------------------------------------------------

function drawHead() {
  const { tiles, config, summary } = run();
  byId("title").textContent = data.title;
  byId("summary").textContent = summary;
  byId("missing").textContent = whatIsMissing();
  byId("notes").hidden = !data.notes.length;
  fill("notes", ...data.notes.map(note => make("li", { dir: "auto" }, note)));
  fill("terms", ...termsIn(tiles.flat().join(" ")));
  fill("tiles", ...tiles.map(([name, value, beside]) => make("div", { class: "tile" },
    make("div", { class: "name" }, name), make("div", { class: "value" }, value),
    make("div", { class: "beside" }, beside))));
  const flags = Object.entries(config).map(([name, value]) => [name, inWords(value)]);
  fill("config-table", table(["flag", "value"], flags));
}

// What the page does not have, since the run's folder does not.
function whatIsMissing() {
  const { config, dev, groups, map, evaluation, facts } = run(), missing = [];
  if (evaluation) return groups?.length ? "" : "Without samples.jsonl in its folder: no completions.";
  if (!dev?.length) missing.push("held-out problems word by word");
  if (!map) missing.push("the map of all held-out problems");
  if (!groups?.length) missing.push("completions");
  else if (!groups.some(group => group.rows.some(row => row.tokens))) missing.push("numbers of tokens");
  if (!missing.length) return "";
  const why = config.report === false ? "the run was made with --no-report" :
    facts.steps ? "its folder has none of it, as with runs of an older version" : "it has only begun";
  return `Not on this page: ${missing.join(", ")}; ${why}.`;
}

const TERMS = [
  ["avg@", "avg@n: the share of n samples of a problem that are right, mean over the problems."],
  ["pass@", "pass@n: the share of problems that at least one of n samples solves."],
  ["maj@", "maj@n: the share of problems whose most frequent answer among n samples is right."],
  ["frac_unparsed", "frac_unparsed: the share of samples in which no answer could be read."],
  ["frac_truncated", "frac_truncated: the share of samples that were cut off at the limit of tokens."],
  ["frac_timeout", "frac_timeout: the share of samples whose grading took too long."],
  ["frac_errors", "frac_errors: the share of samples on which the grader failed."],
  ["horizon", "horizon: the number of steps of a problem that build on one another."],
  ["len_mean", "len_mean: tokens of a sample, end of text included."],
];

// A sentence for each kind of number that a text names.
function termsIn(text) {
  return TERMS.filter(([name]) => text.includes(name)).map(([, meaning]) => make("div", {}, meaning));
}

// A table that was made in Python (see Table in plainrl/results.py), its title, and the lines about it.
function drawTable({ title, head, lines, about }) {
  if (!lines.length) return [];
  return [...title ? [make("h3", {}, title)] : [], make("div", { class: "scroll" }, table(head, lines)),
    ...about.map(line => make("p", { class: "about" }, line))];
}

// The tables of all evaluations, and of the one that is shown. What is to be said of several tables, and what
// the names in them mean, stands once below all.
function drawEvaluation() {
  const own = run().evaluation || [], tables = [...data.beside, ...own], seen = new Map();
  byId("evaluation").hidden = !tables.length;
  for (const line of tables.flatMap(each => each.about)) seen.set(line, (seen.get(line) || 0) + 1);
  const draw = each => drawTable({ ...each, about: each.about.filter(line => seen.get(line) === 1) });
  const shared = [...seen.keys()].filter(line => seen.get(line) > 1);
  const named = tables.flatMap(({ head, lines }) => [...head, ...lines.map(([name]) => name)]);
  const names = named.filter(name => !name.includes("@")); // the others are explained at the head of the page
  fill("evaluation-tables", ...data.beside.flatMap(draw),
    data.beside.length > 0 && own.length > 0 && make("h3", {}, `${run().label} alone`), ...own.flatMap(draw),
    ...shared.map(line => make("p", { class: "about" }, line)),
    make("div", { class: "about" }, ...termsIn(names.join(" "))));
}

// --- one problem, at several scores on dev -----------------------------------------------------------------

const rightOf = problem => problem.samples.filter(sample => sample.right).length;
const graded = problem => problem.samples.some(sample => sample.right !== undefined);
const sampleNumbers = problem => problem.samples.map((_, i) => [i, String(i + 1)]);

// The problem at place `at` of the last score, in another one.
function sameProblem(dev, at, score) {
  const wanted = dev.at(-1).problems[at];
  return dev[score].problems.find(problem => problem.prompt === wanted.prompt) || wanted;
}

// The page opens at the problem that changed most,
function mostChanged(dev) {
  if (!dev?.length) return 0;
  const change = (problem, i) => Math.abs(rightOf(problem) - rightOf(sameProblem(dev, i, 0)));
  const changes = dev.at(-1).problems.map(change);
  return changes.indexOf(Math.max(...changes));
}

// and at the first score, the one in the middle and the last.
function firstColumns(dev) {
  const middle = (dev[0].step + dev.at(-1).step) / 2, far = dev.map(score => Math.abs(score.step - middle));
  return [...new Set([0, far.indexOf(Math.min(...far)), dev.length - 1])];
}

function drawProblem() {
  const dev = run().dev || [];
  byId("problem").hidden = !dev.length;
  if (!dev.length) return;
  const problems = dev.at(-1).problems, chosen = problems[state.problem];
  byId("problem-count").textContent = devAbout(dev.at(-1), run());
  byId("problem-mark").hidden = !run().follows;
  const columns = state.columns ||= firstColumns(dev);
  const set = name => value => { state[name] = Number(value); drawProblem(); };
  const change = (problem, i) => `: ${rightOf(sameProblem(dev, i, 0))} → ${rightOf(problem)} right`;
  const names = problems.map((each, i) => [i, `${each.index ?? i}${graded(each) ? change(each, i) : ""}`]);
  fill("problem-controls", chooser("problem", names, state.problem, set("problem")),
    chooser("sample", sampleNumbers(chosen), state.sample, set("sample")));
  fill("problem-prompt", make("bdi", {}, chosen.prompt));
  const steps = dev.map((score, at) => [at, String(score.step)]);
  fill("problem-columns", ...columns.map((score, i) => {
    const other = value => { columns[i] = Number(value); drawProblem(); };
    const head = chooser("step", steps, score, other, `column ${i}`);
    return devColumn(sameProblem(dev, state.problem, score), dev[score].step, state.sample, head);
  }));
  byId("problem-solution").hidden = !chosen.solution;
  byId("problem-solution").querySelector("pre").textContent = chosen.solution;
}

// How many problems and samples of the scores on dev are here word by word, and of how many.
function devAbout({ problems }, { map }) {
  const samples = Math.max(...problems.map(problem => problem.samples.length));
  const all = map ? ` of the ${map.index.length} held-out ones` : ", as many as the run kept,";
  const most = map ? Math.max(...map.of.flat()) : 0;
  const each = most > samples ? `${samples} of its ${most} samples` : `${samples} samples`;
  return `${problems.length} problems${all} are here, each with ${each}.`;
}

// How often a problem was right among all its samples at a score, ", 1 of 16 in all"; "" where all are here.
function inAll(problem, step, { map }) {
  const place = map ? map.index.indexOf(problem.index) : -1, score = map ? map.steps.indexOf(step) : -1;
  if (place < 0 || score < 0 || !(map.of[score][place] > problem.samples.length)) return "";
  return `, ${map.right[score][place]} of ${map.of[score][place]} in all`;
}

function devColumn(problem, step, sample, head, from = run()) {
  if (!problem) return make("div", {}, make("h3", {}, head), "not scored on this problem");
  const at = Math.min(sample, problem.samples.length - 1), all = inAll(problem, step, from);
  const right = !graded(problem) ? "" :
    ` ${rightOf(problem)} of ${problem.samples.length} ${all ? "here" : "samples"} right${all}`;
  return make("div", {}, make("h3", {}, head, right),
    card(problem.samples[at], `sample ${at + 1}`, from.follows && problem.solution || null));
}

// --- curves ------------------------------------------------------------------------------------------------

function drawCurves() {
  byId("curves").hidden = !data.charts.length;
  const seeds = !data.arms.some(arm => arm.runs.length > 1) ? "" : "Runs that differ in the seed alone are " +
    "one line: their mean, between the lowest and the highest. Thin lines are single seeds. ";
  const zoom = data.bokeh ? `For charts that zoom: pip install ${data.bokeh}, and make the page again. ` : "";
  const page = data.runs.every(each => each.evaluation) ? "docs/measuring.md" : "docs/metrics.md";
  byId("curves-about").textContent = `${seeds}${zoom}${page} of PlainRL says what each metric is.`;
  fill("curves-charts");
  for (const chart of data.charts) drawChart(chart, byId("curves-charts"));
}

// --- a step's group, or the samples of an evaluation's problem ---------------------------------------------

function drawGroups() {
  const groups = run().groups || [], evaluation = Boolean(run().evaluation);
  byId("groups").hidden = !groups.length;
  if (!groups.length) return;
  const learned = !evaluation && groups.every(group => group.rows.every(row => row.right === undefined));
  byId("groups-title").textContent = evaluation ? "The samples of a problem" :
    learned ? "A row of a step" : "The group of a step";
  byId("groups-about").textContent = evaluation ?
    "All samples of one problem at a time. ← and → move through the problems." :
    learned ? "The first row of every step: what was to be written, and what the model made of it before it " +
    "learned it. ← and → move through the steps." :
    "Every step samples several completions of each problem; here is the first problem's. An advantage " +
    "above 0 makes a completion likelier, one below 0 rarer. ← and → move through the steps.";
  byId("slider").max = groups.length - 1;
  byId("slider").setAttribute("aria-label", evaluation ? "problem" : "step");
  drawFilters(groups.flatMap(group => group.rows));
  goTo(state.group);
}

// Which of the filters makes sense depends on the rows of all steps.
function drawFilters(rows) {
  const { filters } = state;
  const filter = (label, name, options) => {
    const set = value => { filters[name] = value; drawGroup(); drawHits(); };
    return chooser(label, [["", "all"], ...options.map(option => [option, option])], filters[name], set);
  };
  const some = name => rows.some(row => row[name] === true) && rows.some(row => !row[name]);
  const said = ["", "right", "correct"]; // by "show" already
  const whys = [...new Set(rows.map(row => row.why))].filter(why => !said.includes(why)).sort();
  const what = "search prompts and completions";
  const search = make("input", { type: "search", placeholder: what, "aria-label": what, value: state.search,
    oninput: () => { state.search = search.value; drawHits(); } });
  fill("filters",
    rows.some(row => row.right !== undefined) && filter("show", "verdict", ["right", "wrong"]),
    whys.length > 1 && filter("wrong because", "why", whys),
    some("guided") && filter("guided", "guided", ["yes", "no"]),
    some("truncated") && filter("truncated", "truncated", ["yes", "no"]),
    search);
}

function passes(row) {
  const { verdict, why, guided, truncated } = state.filters;
  if (verdict && row.right !== (verdict === "right")) return false;
  if (why && row.why !== why) return false;
  if (guided && Boolean(row.guided) !== (guided === "yes")) return false;
  return !truncated || Boolean(row.truncated) === (truncated === "yes");
}

// The next step, or problem of an evaluation, in that direction with a completion that passes the filters.
function nextMatch(direction) {
  const { groups } = run();
  let at = state.group + direction;
  while (groups[at] && !groups[at].rows.some(passes)) at += direction;
  return groups[at] ? at : -1;
}

// How much the filters hide, and the way to the next completion that they do not.
function drawMatches(shown, rows) {
  const { groups } = run(), filtered = Object.values(state.filters).some(value => value);
  const matching = groups.filter(group => group.rows.some(passes)).length;
  const what = run().evaluation ? "problems" : "steps";
  byId("matches").hidden = !filtered;
  byId("group-count").textContent = !filtered ? "" : `The filters hide ${rows.length - shown.length} of ` +
    `${rows.length} completions here. ${matching} of ${groups.length} ${what} have one that they show.`;
  for (const [id, direction] of [["match-before", -1], ["match-after", 1]]) {
    const at = nextMatch(direction), back = direction < 0;
    const label = at < 0 ? `none ${back ? "before" : "after"}` : groups[at].label;
    byId(id).disabled = at < 0;
    byId(id).textContent = back ? `◀ ${label}` : `${label} ▶`;
  }
}

function goTo(group) {
  state.group = Math.max(0, Math.min(run().groups.length - 1, group));
  drawGroup();
}

// The places that the rows had in their group: all, or "kept" where some are left out of the page.
const placesOf = group => group.kept || group.rows.map((_, i) => i);

function drawGroup() {
  const { groups } = run(), group = groups[state.group], { rows } = group;
  const right = group.right ?? rows.filter(row => row.right).length, all = group.of ?? rows.length;
  const known = rows.some(row => row.right !== undefined);
  const fewer = group.kept ? `, ${rows.length} of the ${all} are in this page` : "";
  byId("slider").value = state.group;
  byId("slider").setAttribute("aria-valuetext", group.label);
  byId("slider-label").textContent = `${group.label}${known ? `: ${right} of ${all} right` : ""}${fewer}`;
  byId("before").disabled = state.group === 0;
  byId("after").disabled = state.group === groups.length - 1;
  byId("group-prompt").classList.remove("found");
  fill("group-prompt", make("bdi", {}, group.prompt || ""),
    group.gold !== undefined && make("bdi", {}, `\nanswer: ${group.gold}`));
  const vain = (group.also || []).map((row, i) => card(row, `#${i + 1}`));
  const text = words => words && make("p", { class: "prompt", dir: "auto" }, words);
  fill("group-more",
    folded("The hint that was shown", text(group.hint), true),
    folded("The whole prompt that was sampled from", text(group.sampled_prompt)),
    votesOf(rows),
    folded(`Completions of the same problem that were sampled before and not trained on (${vain.length})`,
      vain.length && make("div", { class: "cards" }, ...vain)));
  const shown = rows.map((row, i) => [row, i]).filter(([row]) => passes(row));
  fill("cards", ...shown.map(([row, i]) => {
    const box = card(row, `#${placesOf(group)[i] + 1}`);
    box.dataset.row = i;
    return box;
  }));
  drawMatches(shown, rows);
}

function folded(title, content, open = false) {
  return content ? make("details", { open: open ? "" : null }, make("summary", {}, title), content) : null;
}

// Which answers an evaluation's samples gave, the most frequent first.
function votesOf(rows) {
  if (!rows.some(row => row.vote !== undefined)) return null;
  const counts = new Map();
  for (const { vote = "none" } of rows) counts.set(vote, (counts.get(vote) || 0) + 1);
  const votes = [...counts].sort((a, b) => b[1] - a[1]).map(([vote, count]) => `${vote} (${count})`);
  return make("p", { class: "about", dir: "auto" }, `votes: ${votes.join(", ")}`);
}

// The prompts and completions that have the text that is searched for; a click goes to its first place there.
function drawHits() {
  const wanted = state.search.toLowerCase(), hits = [];
  let total = 0;
  const look = (text, title, group, row) => {
    const at = text.toLowerCase().indexOf(wanted), end = at + wanted.length;
    if (at < 0 || ++total > MOST_HITS) return;
    const line = make("bdi", {}, `${title}: …${text.slice(Math.max(0, at - 30), at)}`,
      make("mark", {}, text.slice(at, end)), `${text.slice(end, end + 40)}…`);
    hits.push(make("button", { type: "button", onclick: () => showText(group, row, at, end) }, line));
  };
  if (wanted)
    run().groups.forEach((group, at) => {
      look(group.prompt || "", `${group.label}, prompt`, at, null);
      group.rows.forEach((row, i) => { // its tokens: the completion itself has no special ones
        const text = row.tokens ? row.tokens.join("") : row.completion;
        if (passes(row)) look(text, `${group.label}, #${placesOf(group)[i] + 1}`, at, i);
      });
    });
  const more = total > MOST_HITS ? ` (the first ${MOST_HITS} are listed)` : "";
  const count = make("p", { class: "about", "aria-live": "polite" }, `found in ${total} texts${more}`);
  fill("hits", ...(wanted ? [count, ...hits] : []));
}

// Go to letters `from` to `to` of a completion or of a prompt (row null), and mark them there.
function showText(group, row, from, to) {
  const { tokens } = run().groups[group].rows[row] || {};
  if (!tokens) {
    const place = goToRow(group, row);
    let text = (place.querySelector(".completion") || place.querySelector("bdi")).firstChild;
    if (to > text.length) { // the rest is folded
      place.querySelector(".completion button")?.click();
      text = place.querySelector(".completion").firstChild;
    }
    const range = document.createRange();
    range.setStart(text, Math.min(from, text.length));
    range.setEnd(text, Math.min(to, text.length));
    const mark = make("mark", {});
    range.surroundContents(mark);
    mark.scrollIntoView({ block: "center" });
    return;
  }
  let end = 0; // letters up to the end of a token
  const ends = tokens.map(token => end += token.length);
  showHit(group, row, ends.findIndex(each => each > from), ends.findIndex(each => each >= to));
}

// Go to tokens `first` to `last` of a completion of a group, and mark them.
function showHit(group, row, first = 0, last = first) {
  const place = goToRow(group, row), tokens = () => [...place.querySelectorAll(".token")];
  if (tokens().length <= last) place.querySelector(".completion button")?.click(); // the rest is folded
  const found = tokens().slice(first, last + 1);
  for (const token of found) token.classList.add("match");
  pick(run().groups[group].rows[row], found[0]);
  place.querySelector(".completion")?.focus({ preventScroll: true });
  found[0]?.scrollIntoView({ block: "center" });
}

// The card of a completion of a group, or the prompt (row null), brought into view.
function goToRow(group, row) {
  const wanted = run().groups[group].rows[row];
  if (wanted && !passes(wanted)) { // a filter would hide it
    for (const name of Object.keys(state.filters)) state.filters[name] = "";
    drawGroups();
    drawHits();
  }
  goTo(group);
  const place = document.querySelector(`#cards [data-row="${row}"]`) || byId("group-prompt");
  place.classList.add("found");
  place.scrollIntoView({ block: "center" });
  return place;
}

// --- all problems, and the largest numbers -----------------------------------------------------------------

function drawMap() {
  const { map, charts = [], extremes = [] } = run();
  byId("map").hidden = !map;
  byId("training").hidden = !charts.length && !extremes.length;
  if (map) {
    const levels = Array.from({ length: LEVELS }, (_, i) => i + 1);
    const swatches = levels.map(level => span(`token level${level}`, `up to ${100 * level / LEVELS}%`));
    fill("map-legend", "Share of completions that were right: ", span("token", "0"), ...swatches);
    fill("map-table", mapTable(map));
  }
  fill("map-charts");
  for (const chart of charts) drawChart(chart, byId("map-charts"));
  const heads = ["", "value", "token", "step", "problem", "completion", "position"];
  let some = false; // of these tokens are in this page
  const lines = extremes.map(({ kind, value, token, step, index, sample, position }) => {
    const isThere = group =>
      group.label === `step ${step}` && group.index === index && placesOf(group).includes(sample);
    const groups = run().groups || [], group = groups.findIndex(isThere);
    const show = () => showHit(group, placesOf(groups[group]).indexOf(sample), position);
    const button = () => make("button", { type: "button", onclick: show }, `${index}, show it`);
    some ||= group >= 0;
    const problem = group < 0 ? index : button();
    return [kind, value ?? "no number", tokenName(token), step, problem, oneOn(sample), oneOn(position)];
  });
  const title = make("h3", {}, "The largest differences between sampler and trainer, and the largest ratios");
  const there = some && make("p", { class: "about" }, "“Show it” leads to the token, where its " +
    "completion is in this page: a run keeps the first group of every step, and a page may leave out steps.");
  fill("extremes", ...(lines.length ? [title, there, table(heads, lines)] : []));
}

// One row a score, one column a problem.
function mapTable({ index, steps, right, of }) {
  const share = (score, i) => of[score][i] ? right[score][i] / of[score][i] : 0;
  const order = index.map((_, i) => i);
  const solved = order.map(i => steps.reduce((sum, _, score) => sum + share(score, i), 0));
  if (byId("map-sorted").checked) order.sort((a, b) => solved[b] - solved[a]);
  const cell = (score, i) => {
    const level = Math.ceil(share(score, i) * LEVELS), known = right[score][i] !== undefined;
    const title = `problem ${index[i]}, step ${steps[score]}: ${right[score][i]} of ${of[score][i]} right`;
    return make("td", { class: level ? `level${level}` : null, title }, known ? String(right[score][i]) : "");
  };
  const row = (step, score) =>
    make("tr", {}, make("th", { scope: "row" }, `step ${step}`), ...order.map(i => cell(score, i)));
  const numbers = order.map(i => make("th", { scope: "col" }, String(index[i])));
  return make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, "problem"), ...numbers)),
    make("tbody", {}, ...steps.map(row)));
}

// --- several runs ------------------------------------------------------------------------------------------

const pair = { left: 0, right: null, problem: null, sample: 0 }; // null: not chosen yet

// The number of right samples of a problem in another score on dev; null where it is not among them.
function rightIn(score, { prompt }) {
  const same = score.problems.find(problem => problem.prompt === prompt);
  return same && graded(same) ? rightOf(same) : null;
}

// The problem of a score on dev in which another one differs most from it.
function mostDifferent(score, other) {
  const difference = problem => {
    const theirs = rightIn(other, problem);
    return theirs === null ? -1 : Math.abs(rightOf(problem) - theirs);
  };
  const differences = score.problems.map(difference);
  return differences.indexOf(Math.max(...differences));
}

function drawSeveral() {
  byId("several").hidden = data.runs.length < 2;
  if (data.runs.length < 2) return;
  const names = data.runs.map(each => each.label), lines = data.differences.map(line => line.map(inWords));
  const equal = "Their configurations are equal.";
  fill("tests", ...drawTable(data.tests));
  fill("differences", lines.length ? table(["what differs", ...names], lines) : equal);

  // The same problem at the last score of two of them.
  const sides = names.map((name, i) => [i, name]).filter(([i]) => data.runs[i].dev?.length);
  for (const id of ["pair-about", "pair-controls", "pair-prompt"]) byId(id).hidden = sides.length < 2;
  if (sides.length < 2) return;
  if (pair.right === null) pair.right = data.arms[1]?.runs[0] ?? 1; // another method, where there is one
  const others = not => sides.map(([i]) => i).filter(i => i !== not);
  if (!others().includes(pair.left)) pair.left = others()[0];
  if (!others(pair.left).includes(pair.right)) pair.right = others(pair.left)[0];
  const last = i => data.runs[i].dev.at(-1);
  const { problems } = last(pair.left), other = last(pair.right);
  pair.problem ??= mostDifferent(last(pair.left), other);
  const chosen = problems[pair.problem] || problems[0];
  const both = problem => `: ${rightOf(problem)} and ${rightIn(other, problem) ?? "–"} right`;
  const counts = problem => graded(problem) ? both(problem) : "";
  const numbers = problems.map((problem, i) => [i, `${problem.index ?? i}${counts(problem)}`]);
  const set = name => value => { pair[name] = Number(value); drawSeveral(); };
  const setSide = name => value => { pair.problem = null; set(name)(value); };
  fill("pair-controls",
    chooser("left", sides, pair.left, setSide("left")),
    chooser("right", sides, pair.right, setSide("right")),
    chooser("problem", numbers, pair.problem, set("problem"), "pair problem"),
    chooser("sample", sampleNumbers(chosen), pair.sample, set("sample"), "pair sample"));
  fill("pair-prompt", make("bdi", {}, chosen.prompt));
  fill("pair-columns", ...[pair.left, pair.right].map(i => {
    const problem = last(i).problems.find(each => each.prompt === chosen.prompt);
    return devColumn(problem, last(i).step, pair.sample, `${names[i]}, step ${last(i).step}:`, data.runs[i]);
  }));
}

// --- the page ----------------------------------------------------------------------------------------------

function drawTokens() { // all that depends on the colour
  drawLegend();
  drawProblem();
  drawGroups();
  drawSeveral();
}

function drawRun() { // all that depends on the run that is shown
  Object.assign(state, { group: 0, problem: mostChanged(run().dev), sample: 0, columns: null, search: "" });
  for (const name of Object.keys(state.filters)) state.filters[name] = "";
  drawHead();
  drawEvaluation();
  drawTokens();
  drawHits();
  drawMap();
  const sections = [...document.querySelectorAll("main > section[data-name]:not([hidden])")];
  fill("sections", ...sections.map(section => make("a", { href: `#${section.id}` }, section.dataset.name)));
  const option = section => make("option", { value: section.id }, section.dataset.name);
  fill("section", make("option", { value: "" }, "go to"), ...sections.map(option));
}

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function nameTheme() {
  byId("theme").textContent = isDark() ? "light" : "dark";
}

function drawTheme() { // all that depends on light and dark: Bokeh's colours are fixed when it draws
  nameTheme();
  drawCurves();
  drawMap();
}

function begin() {
  const names = namesOfNumbers();
  state.colour = names[0] || "";
  byId("colour-label").hidden = byId("readout").hidden = !names.length;
  const option = (value, text) => make("option", { value }, text);
  fill("colour", ...names.map(name => option(name, name)), option("", "nothing"));
  byId("run-label").hidden = data.runs.length < 2;
  fill("run", ...data.runs.map((each, i) => option(i, each.label)));

  byId("run").addEventListener("change", event => { // the same step, or problem, stays in view
    const labelOf = group => group?.label, before = labelOf(run().groups?.[state.group]);
    state.run = Number(event.target.value);
    drawRun();
    if (run().groups?.length) goTo(run().groups.map(labelOf).indexOf(before));
  });
  byId("colour").addEventListener("change", event => { state.colour = event.target.value; drawTokens(); });
  byId("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    drawTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawTheme);
  byId("slider").addEventListener("input", event => goTo(Number(event.target.value)));
  byId("before").addEventListener("click", () => goTo(state.group - 1));
  byId("after").addEventListener("click", () => goTo(state.group + 1));
  byId("match-before").addEventListener("click", () => goTo(nextMatch(-1)));
  byId("match-after").addEventListener("click", () => goTo(nextMatch(1)));
  byId("map-sorted").addEventListener("change", drawMap);
  document.addEventListener("keydown", event => { // the arrow keys, where nothing else wants them
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const held = event.altKey || event.ctrlKey || event.metaKey;
    const own = event.target.closest("input, select, .chart, .scroll");
    if (!move || held || own || !run().groups?.length) return;
    goTo(state.group + move);
    event.preventDefault();
  });
  byId("section").addEventListener("change", event => {
    byId(event.target.value)?.scrollIntoView();
    event.target.value = "";
  });
  // The line at the bottom is read out where the keys move through tokens, not for every place of a pointer.
  const aloud = way => () => byId("readout").setAttribute("aria-live", way);
  document.addEventListener("keydown", aloud("polite"), true);
  document.addEventListener("pointermove", aloud("off"), true);
  document.addEventListener("pointerdown", aloud("off"), true);
  const root = document.documentElement; // what the page scrolls to must stand below the bar: see report.css
  const measure = () => root.style.setProperty("--bar", `${byId("bar").offsetHeight}px`);
  new ResizeObserver(measure).observe(byId("bar"));
  nameTheme();
  drawCurves();
  drawRun();
}

unpack().then(begin);
