// Completions of report.html, token by token: their numbers, their colours, and the line that describes one.
//
// plainrl/report.py puts the numbers of the runs into the element "data", compressed. Texts are only ever set
// as text (make, textContent), never as HTML: a model wrote them.
"use strict";

let data; // what the page shows, see make_page in plainrl/report.py
async function unpack() {
  const letters = atob(document.getElementById("data").textContent);
  const bytes = Uint8Array.from(letters, each => each.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  data = JSON.parse(await new Response(stream).text());
}

const state = { // what the reader has chosen
  run: 0, colour: "", group: 0, problem: 0, sample: 0, columns: null, search: "",
  filters: { verdict: "", why: "", guided: "", truncated: "" },
};
const LEVELS = 5; // of colour, see report.css
const ROUND = [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10]; // so close together that no scale is much too long
const FIRST_TOKENS = 1000, FIRST_LETTERS = 6000; // of a long completion; a button shows the rest
const SHARE = "advantage × weight"; // is in no file: it is made here

const MEANINGS = new Map(Object.entries({ // of a token's numbers, in the order in which they are offered
  entropy: "nats; how many ways the policy sees to go on here",
  logprob: "nats; 0 is certain",
  [SHARE]: "share in the policy gradient: above 0 is made likelier, below 0 rarer",
  weight: "of the token in the loss",
  ratio: "probability now over that when it was sampled",
  clipped: "the clipped term of the loss won: no gradient",
  gap: "trainer's minus sampler's log-probability; rounding, if all is well",
  selected: "singled out by the method",
  dropped: "left out of the loss by the method",
  penalised: "held back by the method's penalty",
}));

// --- small parts -------------------------------------------------------------------------------------------

const byId = id => document.getElementById(id);

// An element with attributes, listeners (onclick: function) and children; a child that is a string is text.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

const span = (kind, ...children) => make("span", { class: kind }, ...children);

// Put these children into the element of that id, in place of those it has. What is null or false is none.
function fill(id, ...children) {
  const nothing = [null, undefined, false];
  byId(id).replaceChildren(...children.filter(child => !nothing.includes(child)));
}

// A number as people read it: three or four digits, 1e-7 where it is tiny.
function short(number) {
  if (number === null || number === undefined || Number.isNaN(number)) return "–";
  if (typeof number !== "number" || Number.isInteger(number)) return String(number);
  if (Math.abs(number) < 0.001) return number.toExponential(1).replace(".0e", "e");
  return String(Number(number.toPrecision(4)));
}

// --- numbers of tokens, and their colours ------------------------------------------------------------------

// The names of a row's numbers.
function namesIn(row) {
  const names = row.tokens ? Object.keys(row.numbers) : [];
  return names.includes("weight") && row.advantage !== undefined ? [...names, SHARE] : names;
}

// The number of token i by that name; null where there is none. One number alone holds for all tokens.
function numberAt(row, name, i) {
  if (name === SHARE) return numberAt(row, "weight", i) * row.advantage;
  const values = row.numbers[name];
  return (Array.isArray(values) ? values[i] : values) ?? null;
}

// What is coloured: a log-probability by how far it is below 0, a ratio by its logarithm. 0 where none is.
function strength(name, value) {
  if (name === "logprob") return Math.abs(value);
  return name === "ratio" && value !== null ? Math.log(Math.max(value, 1e-9)) : Number(value);
}

// A strength as the number that it is of.
function unstrength(name, size) {
  return name === "logprob" ? -size : name === "ratio" ? Math.exp(size) : size;
}

function everyRow() {
  return data.runs.flatMap(run => [
    ...(run.groups || []).flatMap(group => [...group.rows, ...(group.also || [])]),
    ...(run.dev || []).flatMap(score => score.problems.flatMap(problem => problem.samples)),
  ]);
}

function namesOfNumbers() {
  const names = new Set(everyRow().flatMap(namesIn));
  const known = [...MEANINGS.keys()].filter(name => names.has(name));
  return [...known, ...[...names].filter(name => !MEANINGS.has(name)).sort()];
}

// The scale of a number: the same in all steps and runs, so that one can be compared with another. Its end is
// a round number near the 98th percentile of what is not 0, since single tokens may lie far out.
const scales = new Map();
function scaleOf(name) {
  if (scales.has(name)) return scales.get(name);
  const sizes = [];
  let below = false, binary = true;
  for (const row of everyRow().filter(row => namesIn(row).includes(name)))
    row.tokens.forEach((_, i) => {
      const value = numberAt(row, name, i), size = strength(name, value);
      if (size !== 0) sizes.push(Math.abs(size));
      below ||= size < 0;
      binary &&= value === 0 || value === 1;
    });
  sizes.sort((a, b) => a - b);
  const high = sizes[Math.floor(sizes.length * 0.98)] || 0, power = 10 ** Math.floor(Math.log10(high));
  const end = high ? ROUND.map(times => times * power).find(each => each >= high * 0.999) : 0;
  scales.set(name, { end, below, binary });
  return scales.get(name);
}

// The class of a token's colour; "" for about 0.
function levelOf(name, value) {
  const { end } = scaleOf(name), size = strength(name, value);
  if (!end || Math.abs(size) < end / 50) return "";
  const level = Math.min(LEVELS, Math.ceil(Math.abs(size) / end * LEVELS));
  return `level${level}${size < 0 ? " below" : ""}`;
}

// The colours of the chosen number, each with the number at which it begins.
function drawLegend() {
  const name = state.colour;
  fill("legend");
  byId("meaning").textContent = byId("meaning").title = name ? MEANINGS.get(name) || "" : "";
  if (!name) return;
  const { end, below, binary } = scaleOf(name);
  if (!end) byId("meaning").textContent = "all the same, so that there is nothing to colour";
  if (!end) return;
  const text = size => short(Number(unstrength(name, size).toPrecision(2)));
  const swatch = (level, sign) => {
    const begins = sign * end * ((level - 1) / LEVELS || 0.02);
    return span(`token level${level}${sign < 0 ? " below" : ""}`, binary ? "1" : text(begins));
  };
  const levels = binary ? [LEVELS] : [1, 2, 3, 4, 5];
  const down = below ? [...levels].reverse().map(level => swatch(level, -1)) : [];
  fill("legend", ...down, span("token", text(0)), ...levels.map(level => swatch(level, 1)));
}

// --- a completion ------------------------------------------------------------------------------------------

// The number of the first line that differs from the worked solution, spaces left out; null where none does.
function firstDifference(completion, solution) {
  const strip = text => text.split("\n").map(line => line.replace(/\s/g, ""));
  const ours = strip(completion), theirs = strip(solution);
  const at = ours.findIndex((line, i) => i >= theirs.length ? line !== "" : line !== theirs[i]);
  return at >= 0 ? at : ours.length < theirs.length ? ours.length : null;
}

// The text of a completion, token by token where the row has tokens. Line number `differing` is marked.
function completion(row, differing = null) {
  const box = make("div", { class: "completion", tabindex: 0, dir: "auto", role: "group",
    "aria-label": row.tokens ? "completion; the arrow keys step through its tokens" : "completion" });
  const parts = row.tokens || row.completion, unit = row.tokens ? "tokens" : "letters";
  const write = count => {
    box.replaceChildren();
    if (differing === 0) box.append(pill(), " ");
    if (row.tokens) writeTokens(box, row, count, differing);
    else box.append(parts.slice(0, count));
    const all = () => write(parts.length), how = `show all ${parts.length.toLocaleString("en")} ${unit}`;
    if (count < parts.length) box.append(" … ", make("button", { type: "button", onclick: all }, how));
    else if (row.cut) box.append(make("p", { class: "about" },
      `cut here; the whole completion of ${row.cut.toLocaleString("en")} letters is in the run's folder`));
  };
  write(row.tokens ? FIRST_TOKENS : FIRST_LETTERS);

  // One token is picked: by the pointer, or by the arrow keys while the completion has the focus.
  const tokens = () => [...box.querySelectorAll(".token")];
  const point = event => "position" in event.target && pick(row, event.target);
  box.addEventListener("click", point);
  box.addEventListener("pointermove", event => { // which a browser also sends where the page moved instead
    if (event.movementX || event.movementY) point(event);
  });
  box.addEventListener("focus", () => box.contains(picked) || pick(row, tokens()[0]));
  box.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!move || !row.tokens) return;
    const from = box.contains(picked) ? picked.position : -1;
    pick(row, tokens()[Math.max(0, Math.min(tokens().length - 1, from + move))]);
    picked.scrollIntoView({ block: "nearest", inline: "nearest" });
    event.preventDefault();
    event.stopPropagation(); // else the step would change too
  });
  return box;
}

function writeTokens(box, row, count, differing) {
  const coloured = namesIn(row).includes(state.colour);
  let line = 0;
  row.tokens.slice(0, count).forEach((text, i) => {
    const level = coloured ? levelOf(state.colour, numberAt(row, state.colour, i)) : "";
    const ended = text.split("\n").length - 1;
    const kind = `${ended ? " newline" : ""}${/^<.+>$/.test(text) ? " special" : ""}`;
    const token = span(`token ${level}${kind}`, text);
    token.position = i;
    box.append(token);
    if (differing > line && differing <= line + ended) box.append(pill(), " ");
    line += ended;
  });
}

const pill = () => make("span", { class: "pill", title: "the first line that differs" }, "≠");

let picked = null; // the token that the line at the bottom of the page describes

function pick(row, token) {
  if (!token) return;
  picked?.classList.remove("picked");
  picked = token;
  picked.classList.add("picked");
  const i = token.position, place = span("name", `token ${i + 1} of ${row.tokens.length} `);
  const number = name => span("", span("name", `${name} `), short(numberAt(row, name, i)));
  fill("readout", span("", place, tokenName(row.tokens[i])), ...namesIn(row).map(number));
}

// A token by itself, with its spaces and ends of lines to be seen.
function tokenName(text) {
  return make("bdi", { class: "token-name" }, String(text ?? "–").replaceAll("\n", "↵").replaceAll(" ", "␣"));
}

// Whether a reward says more than right and wrong do: where some are neither 0 nor 1.
let partial = null;
function partialRewards() {
  partial ??= everyRow().some(row => ![0, 1, undefined].includes(row.reward));
  return partial;
}

// A completion with what is known of it: reward, advantage, why, truncated, guided, the algorithm's own.
function card(row, title, solution = null) {
  const differing = solution === null ? null : firstDifference(row.completion, solution);
  const facts = [make("b", {}, title)], verdict = row.right ? "right" : "wrong";
  if (row.right !== undefined) facts.push(make("b", {}, row.right ? "✓ right" : "✗ wrong"));
  if (row.reward !== undefined && (partialRewards() || row.reward !== Number(row.right)))
    facts.push(`reward ${short(row.reward)}`);
  const sign = row.advantage > 0 ? "+" : "";
  if (row.advantage !== undefined) facts.push(`advantage ${sign}${short(row.advantage)}`);
  if (row.why && !["right", "wrong", "correct"].includes(row.why)) facts.push(row.why);
  if (row.right === false && row.parsed !== undefined) facts.push(`answer ${row.parsed}`);
  for (const name of ["guided", "truncated"]) if (row[name]) facts.push(span("chip", name));
  for (const [name, value] of Object.entries(row.facts || {})) facts.push(`${name} ${short(value)}`);
  const head = facts.map(fact => fact instanceof Node ? fact : make("bdi", {}, fact));
  const box = make("article", { class: `card ${row.right === undefined ? "" : verdict}` },
    make("header", {}, ...head), completion(row, differing));
  if (differing !== null) {
    const line = solution.split("\n")[differing];
    const expected = line === undefined ? " the solution ends before this line" : ` solution: ${line}`;
    box.append(make("p", { class: "expected", dir: "auto" }, pill(), expected));
  }
  return box;
}
