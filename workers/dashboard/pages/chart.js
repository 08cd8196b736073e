// A rate over the time of day: an axis with units, and the value under the pointer or the arrow keys.
const HEIGHT = 170;
const LEFT = 52;
const BOTTOM = 140;
const TOP = 14;
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const seconds = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const rate = (value) => (value >= 10 || value === 0 ? `${Math.round(value)}/s` : `${value.toFixed(value < 1 ? 2 : 1)}/s`);

// The next of 1, 2, 5, 10, 20, … above.
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((each) => each * power >= value) * power;
}

let chosen = -1;
let redraw = () => {};

export function drawRates(svg, points, out) {
  redraw = () => drawRates(svg, points, out);
  listen(svg, points);
  svg.replaceChildren();
  if (points.length < 2) return;
  const from = points[0][0];
  const to = points[points.length - 1][0];
  const length = Math.max(1, to - from);
  const most = Math.max(...points.map((p) => p[1]));
  const top = nice(Math.max(most, 0.01));
  const right = Math.max(240, svg.clientWidth) - 10;
  svg.setAttribute("viewBox", `0 0 ${right + 10} ${HEIGHT}`);
  svg.setAttribute("aria-label", `Destinations a second from ${clock.format(from * 1000)} to ${clock.format(to * 1000)}, at most ${rate(most)}`);
  const x = (at) => LEFT + ((at - from) / length) * (right - LEFT);
  const y = (value) => BOTTOM - (value / top) * (BOTTOM - TOP);
  const make = (name, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    svg.append(made);
  };
  for (const value of [0, top / 2, top]) {
    make("line", { x1: LEFT, x2: right, y1: y(value), y2: y(value) });
    make("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, rate(value));
  }
  const step = STEPS.find((each) => length / each <= Math.max(2, (right - LEFT) / 110)) || STEPS.at(-1);
  const offset = new Date(from * 1000).getTimezoneOffset() * 60;
  for (let at = Math.ceil((from - offset) / step) * step + offset; at <= to; at += step) {
    make("line", { x1: x(at), x2: x(at), y1: BOTTOM, y2: BOTTOM + 4 });
    make("text", { x: x(at), y: BOTTOM + 19, "text-anchor": "middle" }, (step < 60 ? seconds : clock).format(at * 1000));
  }
  const line = points.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(" L");
  make("path", { class: "area", d: `M${x(from)},${BOTTOM} L${line} L${x(to).toFixed(1)},${BOTTOM} Z` });
  make("path", { class: "curve", d: `M${line}`, "vector-effect": "non-scaling-stroke" });
  const at = points[chosen];
  if (at) {
    make("line", { class: "hair", x1: x(at[0]), x2: x(at[0]), y1: TOP, y2: BOTTOM });
    make("circle", { class: "dot", cx: x(at[0]), cy: y(at[1]), r: 4 });
  }
  const [when, value] = at || points[points.length - 1];
  out.textContent = `${rate(value)} at ${seconds.format(when * 1000)}`;
}

const listening = new WeakSet();

function listen(svg, points) {
  if (listening.has(svg)) return;
  listening.add(svg);
  const choose = (index) => {
    chosen = index;
    redraw();
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const part = Math.min(1, Math.max(0, (event.clientX - box.left - LEFT) / (box.width - LEFT - 10)));
    const at = points[0][0] + part * (points[points.length - 1][0] - points[0][0]);
    let nearest = 0;
    points.forEach((p, index) => {
      if (Math.abs(p[0] - at) < Math.abs(points[nearest][0] - at)) nearest = index;
    });
    choose(nearest);
  });
  svg.addEventListener("pointerleave", () => choose(-1));
  svg.addEventListener("blur", () => choose(-1));
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const from = chosen < 0 ? points.length - 1 : chosen;
    choose(Math.min(points.length - 1, Math.max(0, from + move)));
  });
}
