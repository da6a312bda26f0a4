// Line charts of report.html: by Bokeh where its code is in the page (it zooms and pans), else as plain SVG.
//
// A chart is {title, ylabel, xlabel, lines}. A line is {label, x, y}, with `low` and `high` where it has a
// band, and `seeds`, the single runs behind a mean. See line_of in plainrl/report_charts.py.
"use strict";

const WIDTH = 440, HEIGHT = 250; // of a chart at most, and at least: a letter of an SVG is then not too small
const LEFT = 62, RIGHT = 12, TOP = 10, BOTTOM = 38; // its margins
const COLOURS = ["blue", "orange", "green", "purple", "sky"]; // of report.css
const DASHES = ["solid", [7, 3], [2, 3], [9, 3, 2, 3], [12, 5]]; // as in report.css

// Put a chart into `parent`.
function drawChart(chart, parent) {
  const box = make("div", { class: "chart" }, make("h3", {}, chart.title));
  parent.append(box);
  if (window.Bokeh) bokehChart(chart, box);
  else svgChart(chart, box);
}

// An axis that shows all numbers: its ends, and four to eight round numbers between them, 1, 2 or 5 times a
// power of ten apart. A `whole` one counts steps: it ends where they do. Shares and scores begin at 0
// (`zero`), and so does what begins near it.
function axisOf(numbers, { whole = false, zero = false }) {
  let low = Infinity, high = -Infinity;
  for (const number of numbers) {
    if (number === null) continue;
    low = Math.min(low, number);
    high = Math.max(high, number);
  }
  if (low > high) [low, high] = [0, 1];
  if (!whole && (zero || low < high / 2)) low = Math.min(low, 0);
  if (low === high) { // of numbers that are all the same
    const beside = whole ? 1 : Math.abs(low) / 2;
    [low, high] = low === 0 && !whole ? [0, 1] : [low - beside, high + beside];
  }
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map(times => times * power).find(each => each >= rough * 0.999);
  if (whole) step = Math.max(1, step);
  if (!whole) {
    low = Math.floor(low / step + 1e-9) * step;
    high = Math.ceil(high / step - 1e-9) * step;
  }
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return { low, high, ticks };
}

const xAxisOf = chart => axisOf(everyNumber(chart, "x"), { whole: true });
const yAxisOf = chart => axisOf(everyNumber(chart, "y"), { zero: /share|score|pass@/.test(chart.ylabel) });

function everyNumber(chart, part) {
  const own = part === "x" ? ["x"] : ["y", "low", "high"];
  return chart.lines.flatMap(line =>
    own.flatMap(name => line[name] || []).concat((line.seeds || []).flatMap(seed => seed[part])));
}

function stepsOf(chart) {
  return [...new Set(chart.lines.flatMap(line => line.x))].sort((a, b) => a - b);
}

// The classes of a line (see report.css): its colour, and its colour with its dashes.
function looksOf(line, i) {
  const number = (line.look ?? i) % COLOURS.length;
  return { hue: `line${number}`, look: `line${number} dash${number}` };
}

// What stands for a line below a chart: a piece of it, its name, and the value under the cursor.
function key(line, i, value = "") {
  const piece = svg("path", { class: looksOf(line, i).look, d: "M0 5H30" });
  return make("li", {}, svg("svg", { viewBox: "0 0 30 10" }, piece), line.label, value);
}

// --- SVG ---------------------------------------------------------------------------------------------------

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function svgChart(chart, box) {
  const { low: left, high: right, ticks: steps } = xAxisOf(chart), { low, high, ticks } = yAxisOf(chart);
  const width = Math.max(260, Math.min(WIDTH, box.clientWidth - 26)); // less its margins
  const toX = x => LEFT + (x - left) / (right - left) * (width - LEFT - RIGHT);
  const toY = y => HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, tabindex: 0, role: "img",
    "aria-label": `${chart.title}; the arrow keys move through its steps` });
  for (const y of ticks) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: toY(y), y2: toY(y) }),
      svg("text", { x: LEFT - 6, y: toY(y) + 4, "text-anchor": "end" }, short(y)));
  }
  for (const x of steps)
    picture.append(svg("text", { x: toX(x), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, short(x)));
  picture.append(
    svg("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, chart.xlabel),
    svg("text", { "text-anchor": "middle",
      transform: `translate(12 ${(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)` }, chart.ylabel));

  // A path through the points; it has a hole where a number is missing.
  const path = (xs, ys) => {
    let gap = true;
    return xs.map((x, i) => {
      if (ys[i] === null) { gap = true; return ""; }
      const piece = `${gap ? "M" : "L"}${toX(x).toFixed(1)} ${toY(ys[i]).toFixed(1)}`;
      gap = false;
      return piece;
    }).join("");
  };
  chart.lines.forEach((line, i) => {
    const { hue, look } = looksOf(line, i);
    if (line.low) {
      const known = line.x.map((_, at) => at).filter(at => line.low[at] !== null && line.high[at] !== null);
      const back = [...known].reverse();
      const edge = known.map(at => `${toX(line.x[at])} ${toY(line.high[at])}`)
        .concat(back.map(at => `${toX(line.x[at])} ${toY(line.low[at])}`));
      if (known.length) picture.append(svg("path", { class: `band ${hue}`, d: `M${edge.join("L")}Z` }));
    }
    for (const seed of line.seeds || [])
      picture.append(svg("path", { class: `seed ${hue}`, d: path(seed.x, seed.y) }));
    picture.append(svg("path", { class: look, d: path(line.x, line.y) }));
    if (line.x.length < 15)
      line.x.forEach((x, at) => line.y[at] !== null &&
        picture.append(svg("circle", { class: look, cx: toX(x), cy: toY(line.y[at]), r: 3 })));
  });

  // Beside each name stands the value under the cursor: that of the pointer, or of the arrow keys.
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const values = chart.lines.map(() => make("span", { class: "at" }));
  const where = make("li", { class: "at" });
  const aloud = make("p", { class: "unseen", "aria-live": "polite" }); // what the arrow keys come to
  const points = stepsOf(chart);
  let at = -1;
  const show = position => {
    at = Math.max(0, Math.min(points.length - 1, position));
    cursor.setAttribute("x1", toX(points[at]));
    cursor.setAttribute("x2", toX(points[at]));
    cursor.setAttribute("visibility", "visible");
    where.textContent = `${chart.xlabel} ${short(points[at])}`;
    chart.lines.forEach((line, i) => {
      values[i].textContent = ` ${short(line.y[line.x.indexOf(points[at])])}`;
    });
  };
  picture.addEventListener("pointermove", event => {
    const frame = picture.getBoundingClientRect();
    const place = (event.clientX - frame.left) / frame.width * width; // in units of the picture
    const x = left + (place - LEFT) / (width - LEFT - RIGHT) * (right - left);
    const distances = points.map(point => Math.abs(point - x));
    show(distances.indexOf(Math.min(...distances)));
  });
  picture.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    show(at < 0 && move < 0 ? points.length - 1 : at + move);
    const lines = chart.lines.map((line, i) => `${line.label}${values[i].textContent}`);
    aloud.textContent = [where.textContent, ...lines].join(", ");
    event.preventDefault();
  });
  picture.append(cursor);
  const keys = chart.lines.map((line, i) => key(line, i, values[i]));
  box.append(picture, make("ul", { class: "keys" }, ...keys, where), aloud);
}

// --- Bokeh -------------------------------------------------------------------------------------------------

// The colours are those of the page at this moment: a change between light and dark draws anew.
function bokehChart(chart, box) {
  const styles = getComputedStyle(document.documentElement);
  const probe = make("span", {});
  box.append(probe);
  const colour = name => { // a variable of report.css as the browser resolves it, light or dark
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const letter = `${0.72 * parseFloat(styles.fontSize)}px`; // grows with the page
  const { low, high } = yAxisOf(chart);
  const figure = Bokeh.Plotting.figure({
    width: WIDTH, height: HEIGHT + 40, sizing_mode: "stretch_width", min_border_right: 12,
    tools: "pan,box_zoom,wheel_zoom,reset,save", toolbar_location: "above",
    x_axis_label: chart.xlabel, y_axis_label: chart.ylabel,
    y_range: new Bokeh.Range1d({ start: low - (high - low) * 0.04, end: high + (high - low) * 0.04 }),
    background_fill_color: null, border_fill_color: null, outline_line_color: colour("line"),
  });
  figure.toolbar.logo = null;
  figure.toolbar.active_scroll = figure.toolbar.active_drag = null; // wheel and finger scroll the page
  const whole = () => new Bokeh.BasicTicker({ min_interval: 1, num_minor_ticks: 0 }); // steps are
  figure.xaxis.ticker = whole();
  figure.xgrid.ticker = whole();
  for (const axis of [figure.xaxis, figure.yaxis].flat()) {
    axis.formatter = new Bokeh.BasicTickFormatter({ power_limit_low: -6 }); // 0.0005, not 5.000e-4
    axis.axis_label_text_color = axis.major_label_text_color = colour("soft");
    axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = colour("line");
    axis.axis_label_text_font_style = "normal";
    axis.axis_label_text_font_size = axis.major_label_text_font_size = letter;
  }
  for (const grid of [figure.xgrid, figure.ygrid].flat()) grid.grid_line_color = colour("line");
  const numbers = values => values.map(value => value ?? NaN);
  chart.lines.forEach((line, i) => {
    const number = (line.look ?? i) % 5;
    const look = { line_color: colour(COLOURS[number]), line_dash: DASHES[number], line_width: 2 };
    if (line.low)
      figure.varea(line.x, numbers(line.low), numbers(line.high),
        { fill_color: look.line_color, fill_alpha: 0.16 });
    for (const seed of line.seeds || [])
      figure.line(seed.x, numbers(seed.y), { line_color: look.line_color, line_width: 0.8, line_alpha: 0.6 });
    figure.line(line.x, numbers(line.y), look);
    if (line.x.length < 15)
      figure.scatter(line.x, numbers(line.y), { size: 6, fill_color: look.line_color, line_color: null });
  });
  // One box of values for all lines: its places are those of a line that cannot be seen.
  const steps = stepsOf(chart);
  const values = chart.lines.map(line => new Map(line.x.map((x, i) => [x, line.y[i]])));
  const known = step => values.map(line => line.get(step)).find(value => (value ?? null) !== null) ?? NaN;
  const source = new Bokeh.ColumnDataSource({ data: { x: steps, y: steps.map(known) } });
  const describe = (_, { index }) => { // in colours of the page: Bokeh's own are those of a light one
    const lines = chart.lines.map((line, i) => `${line.label}: ${short(values[i].get(steps[index]))}`);
    const style = "background: var(--card); color: var(--ink); margin: -5px; padding: .3rem .5rem";
    const rows = [`${chart.xlabel} ${steps[index]}`, ...lines].map(row => make("div", {}, row));
    return make("div", { style }, ...rows);
  };
  const unseen = figure.line({ field: "x" }, { field: "y" }, { source, line_alpha: 0 });
  const how = { mode: "vline", line_policy: "nearest", tooltips: describe };
  figure.add_tools(new Bokeh.HoverTool({ renderers: [unseen], ...how }));
  const place = make("div", {});
  box.append(place);
  probe.remove();
  Bokeh.Plotting.show(figure, place);
  box.append(make("ul", { class: "keys" }, ...chart.lines.map((line, i) => key(line, i))));
}
