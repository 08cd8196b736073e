// The LLM page, kept up to date: asked for again while somebody looks, and what is marked as live is put in.
// The server has escaped every text, and what DOMParser reads runs no script.
const PAUSE_MS = 3000;
const lost = document.getElementById("lost");
const CLOCK = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const charts = document.getElementById("charts");

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok) throw new Error(answer.statusText);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const chart of page.querySelectorAll("[data-chart]")) localise(chart);
    for (const fresh of page.querySelectorAll("[data-live]")) {
      const here = document.getElementById(fresh.id);
      // A chart that somebody reads stands still.
      if (!here || (here === charts && here.matches(":hover, :focus-within"))) continue;
      // Only what has changed, so that nobody's selection or scroll position goes.
      if (here.innerHTML !== fresh.innerHTML) here.replaceChildren(...document.adoptNode(fresh).childNodes);
    }
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  }
}

async function keepUp() {
  await refresh();
  setTimeout(keepUp, PAUSE_MS);
}

// The clock of the reader instead of UTC.
function localise(chart) {
  for (const tick of chart.querySelectorAll("[data-at]")) tick.textContent = new Date(tick.dataset.at * 1000).toLocaleTimeString([], CLOCK);
}

function shown(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "s") return duration(value);
  return (value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1)) + unit;
}

function duration(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 59.5) return `${seconds < 9.95 ? Number(seconds.toPrecision(2)) : Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}m ${String(whole % 60).padStart(2, "0")}s`;
}

// The values of all charts at one place of the clock; null: the latest ones.
function read(at) {
  for (const chart of charts.querySelectorAll("[data-chart]")) {
    const data = JSON.parse(chart.dataset.chart);
    const last = data.at.length - 1;
    const place = at === null ? null : Math.min(last, Math.max(0, at));
    const x = `${last ? (100 * (place ?? 0)) / last : 50}%`;
    const cursor = chart.querySelector(".cursor");
    cursor.setAttribute("visibility", place === null ? "hidden" : "visible");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x);
    chart.querySelector("output").textContent = place === null ? "" : new Date(data.at[place] * 1000).toLocaleTimeString([], { ...CLOCK, second: "2-digit" });
    for (const value of chart.querySelectorAll("[data-line]")) {
      const values = data.lines[value.dataset.line];
      const known = place === null ? values.findLast((each) => each !== null) : values[place];
      value.textContent = shown(known, data.unit);
    }
    chart.dataset.place = place ?? "";
  }
}

charts.addEventListener("pointermove", (event) => {
  const plot = event.target.closest("[data-chart]")?.querySelector("svg");
  if (!plot) return;
  const box = plot.getBoundingClientRect();
  const last = JSON.parse(plot.parentElement.dataset.chart).at.length - 1;
  read(Math.round(((event.clientX - box.left) / box.width) * last));
});
charts.addEventListener("pointerleave", () => read(null));
charts.addEventListener("focusout", () => read(null));
charts.addEventListener("keydown", (event) => {
  const chart = event.target.closest("[data-chart]");
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!chart || !by) return;
  event.preventDefault();
  const last = JSON.parse(chart.dataset.chart).at.length - 1;
  read((chart.dataset.place ? Number(chart.dataset.place) : last + (by < 0 ? 1 : 0)) + by);
});

for (const chart of charts.querySelectorAll("[data-chart]")) localise(chart);
const zone = document.querySelector(".zone");
zone.textContent = new Intl.DateTimeFormat([], { timeZoneName: "short" }).formatToParts().find((part) => part.type === "timeZoneName").value;
setTimeout(keepUp, PAUSE_MS);
document.addEventListener("visibilitychange", refresh);
