// Line charts of report.html: by Bokeh where its code is in the page (it zooms and pans), else as plain SVG.
//
// A chart is {title, ylabel, xlabel, lines}. A line is {label, x, y}, with `low` and `high` where it has a
// band, and `seeds`, the single runs behind a mean. See line_of in plainrl/report_data.py.
"use strict";

const WIDTH = 440, HEIGHT = 250; // of an SVG chart, in its units
const LEFT = 56, RIGHT = 12, TOP = 10, BOTTOM = 38; // its margins
const COLOURS = ["blue", "orange", "green", "purple", "sky"]; // of report.css
const DASHES = ["solid", [7, 3], [2, 3], [9, 3, 2, 3], [12, 5]]; // as in report.css

// Put a chart into `parent`.
function drawChart(chart, parent) {
  const box = make("div", { class: "chart" }, make("h3", {}, chart.title));
  parent.append(box);
  if (window.Bokeh) bokehChart(chart, box);
  else svgChart(chart, box);
}

// The ends of an axis that shows all numbers. One whose numbers begin near 0 may begin at 0.
function range(numbers, zero = true) {
  let low = Infinity, high = -Infinity;
  for (const number of numbers) {
    if (number === null) continue;
    low = Math.min(low, number);
    high = Math.max(high, number);
  }
  if (low > high) return [0, 1];
  if (low === high) return [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  if (zero && low > 0 && low < high / 2) low = 0;
  return [low, high];
}

// Four to eight round numbers between two ends: 1, 2 or 5 times a power of ten apart.
function ticks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(times => times * power).find(each => each >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

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
  const [left, right] = range(everyNumber(chart, "x"), false), [low, high] = range(everyNumber(chart, "y"));
  const toX = x => LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT);
  const toY = y => HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0, role: "img",
    "aria-label": `${chart.title}; the arrow keys move through its steps` });
  for (const y of ticks(low, high)) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: toY(y), y2: toY(y) }),
      svg("text", { x: LEFT - 6, y: toY(y) + 4, "text-anchor": "end" }, short(y)));
  }
  for (const x of ticks(left, right))
    picture.append(svg("text", { x: toX(x), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, short(x)));
  picture.append(
    svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, chart.xlabel),
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
  const steps = stepsOf(chart);
  let at = -1;
  const show = position => {
    at = Math.max(0, Math.min(steps.length - 1, position));
    cursor.setAttribute("x1", toX(steps[at]));
    cursor.setAttribute("x2", toX(steps[at]));
    cursor.setAttribute("visibility", "visible");
    where.textContent = `${chart.xlabel} ${short(steps[at])}`;
    chart.lines.forEach((line, i) => {
      values[i].textContent = ` ${short(line.y[line.x.indexOf(steps[at])])}`;
    });
  };
  picture.addEventListener("pointermove", event => {
    const frame = picture.getBoundingClientRect();
    const place = (event.clientX - frame.left) / frame.width * WIDTH; // in units of the picture
    const x = left + (place - LEFT) / (WIDTH - LEFT - RIGHT) * (right - left);
    const distances = steps.map(step => Math.abs(step - x));
    show(distances.indexOf(Math.min(...distances)));
  });
  picture.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    show(at < 0 && move < 0 ? steps.length - 1 : at + move);
    event.preventDefault();
  });
  picture.append(cursor);
  const keys = chart.lines.map((line, i) => key(line, i, values[i]));
  box.append(picture, make("ul", { class: "keys" }, ...keys, where));
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
  const [low, high] = range(everyNumber(chart, "y"));
  const figure = Bokeh.Plotting.figure({
    width: WIDTH, height: HEIGHT + 40, sizing_mode: "stretch_width", min_border_right: 12,
    tools: "pan,box_zoom,wheel_zoom,reset,save", toolbar_location: "above",
    x_axis_label: chart.xlabel, y_axis_label: chart.ylabel,
    y_range: new Bokeh.Range1d({ start: low - (high - low) * 0.04, end: high + (high - low) * 0.04 }),
    background_fill_color: null, border_fill_color: null, outline_line_color: colour("line"),
  });
  figure.toolbar.logo = null;
  figure.toolbar.active_scroll = figure.toolbar.active_drag = null; // wheel and finger scroll the page
  for (const axis of [figure.xaxis, figure.yaxis].flat()) {
    axis.axis_label_text_color = axis.major_label_text_color = colour("soft");
    axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = colour("line");
    axis.axis_label_text_font_style = "normal";
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
  // One box of values for all lines: they are columns of a line that cannot be seen.
  const steps = stepsOf(chart), columns = { x: steps, y: steps.map(() => NaN) };
  chart.lines.forEach((line, i) => {
    const at = new Map(line.x.map((x, place) => [x, line.y[place]]));
    columns[`value${i}`] = steps.map(step => short(at.get(step)));
    columns.y = columns.y.map((y, place) => Number.isNaN(y) ? at.get(steps[place]) ?? NaN : y);
  });
  const source = new Bokeh.ColumnDataSource({ data: columns });
  const unseen = figure.line({ field: "x" }, { field: "y" }, { source, line_alpha: 0 });
  figure.add_tools(new Bokeh.HoverTool({ renderers: [unseen], mode: "vline", line_policy: "nearest",
    tooltips: [[chart.xlabel, "@x"], ...chart.lines.map((line, i) => [line.label, `@value${i}`])] }));
  const place = make("div", {});
  box.append(place);
  probe.remove();
  Bokeh.Plotting.show(figure, place);
  box.append(make("ul", { class: "keys" }, ...chart.lines.map((line, i) => key(line, i))));
}
