// One job, live. Everything from outside becomes text (textContent), never markup.
const root = document.body.dataset.root;
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const KEPT = 50; // profiles and failures in the page
const MAKING = 8; // destinations in the making that are shown
const POINTS = 400; // of the chart

const job = { ...data.counts };
const points = data.points.slice();
const making = new Map();
const shown = new Set(data.shown);
let source;
let lastId = data.last_id;
let redraw = 0;

const whole = new Intl.NumberFormat("en");
const seconds = (s) => {
  const n = Math.round(s);
  if (n < 60) return `${n}s`;
  if (n < 3600) return `${Math.floor(n / 60)}m${String(n % 60).padStart(2, "0")}s`;
  return `${Math.floor(n / 3600)}h${String(Math.floor((n % 3600) / 60)).padStart(2, "0")}m`;
};
const money = (usd) => (usd == null ? "unknown" : usd === 0 ? "$0" : `$${usd < 1 ? usd.toPrecision(3) : usd.toFixed(2)}`);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const label = (event) => [event.name, event.country].filter(Boolean).join(", ");

function prepend(list, item) {
  item.classList.add("arrived");
  list.prepend(item);
  while (list.children.length > KEPT) list.lastElementChild.remove();
}

function figures() {
  const ended = job.done + job.failed;
  $("ended").textContent = whole.format(ended);
  $("total").textContent = whole.format(job.total);
  $("failed").textContent = whole.format(job.failed);
  $("bar").max = job.total || 1;
  $("bar").value = ended;
  $("rate").textContent = job.rate_per_second ? `${job.rate_per_second.toFixed(1)}/s` : "–";
  $("eta").textContent = job.eta_seconds == null ? "–" : seconds(job.eta_seconds);
  $("calls").textContent = whole.format(job.llm_calls);
  $("hits").textContent = whole.format(job.cache_hits);
  $("tokens").textContent = whole.format(job.prompt_tokens + job.completion_tokens);
  $("cost").textContent = money(job.cost_usd);
}

function state(word, words = "") {
  $("state").textContent = word;
  $("state").className = `tag ${word}`;
  $("words").textContent = words;
  $("words").hidden = !words;
}

function chart() {
  const svg = $("chart");
  svg.replaceChildren();
  if (points.length < 2) return;
  const from = points[0][0];
  const span = Math.max(1, points[points.length - 1][0] - from);
  const top = Math.max(...points.map((p) => p[1]), 0.001);
  const right = Math.max(200, svg.clientWidth) - 8;
  svg.setAttribute("viewBox", `0 0 ${right + 8} 150`);
  const x = (at) => 44 + ((at - from) / span) * (right - 44);
  const y = (rate) => 128 - (rate / top) * 112;
  const make = (name, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    svg.append(made);
  };
  const line = points.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(" L");
  make("line", { x1: 44, x2: right, y1: 128, y2: 128 });
  make("path", { class: "area", d: `M${x(from)},128 L${line} L${x(points[points.length - 1][0]).toFixed(1)},128 Z` });
  make("path", { class: "curve", d: `M${line}`, "vector-effect": "non-scaling-stroke" });
  make("text", { x: 40, y: 20, "text-anchor": "end" }, top < 10 ? top.toFixed(1) : whole.format(Math.round(top)));
  make("text", { x: 40, y: 131, "text-anchor": "end" }, "0");
  make("text", { x: right, y: 146, "text-anchor": "end" }, seconds(span));
}

function makingList() {
  const list = $("making");
  list.replaceChildren();
  for (const [, each] of [...making].slice(-MAKING).reverse()) {
    const item = element("li");
    item.append(element("span", each.name, "name"), " ", element("span", each.stages === 1 ? "1 answer" : `${each.stages} answers`, "quiet small"));
    if (each.found.length) item.append(element("br"), element("span", each.found.join(" · "), "quiet small"));
    list.append(item);
  }
}

// Drawing is put off to the next frame, however many events came.
function later() {
  if (!redraw) {
    redraw = requestAnimationFrame(() => {
      redraw = 0;
      figures();
      chart();
      makingList();
    });
  }
}

const handlers = {
  "job.started": (event) => {
    job.total = event.total || job.total;
    state("running");
  },
  "stage.done": (event) => {
    // News of the last stages may come after the destination itself.
    if (shown.has(event.destination_id)) return;
    const each = making.get(event.destination_id) || { name: event.name, stages: 0, found: [] };
    each.stages += 1;
    each.found = [...(event.found || []).slice(0, 2), ...each.found].slice(0, 4);
    making.delete(event.destination_id);
    making.set(event.destination_id, each);
    if (making.size > 500) making.delete(making.keys().next().value);
  },
  "destination.done": (event) => {
    making.delete(event.destination_id);
    if (shown.has(event.destination_id)) return;
    remember(event.destination_id);
    job.done += 1;
    const item = element("li");
    item.dataset.destination = event.destination_id;
    const link = element("a", label(event), "name");
    link.href = `${root}/jobs/${encodeURIComponent(data.job_id)}/destinations/${encodeURIComponent(event.destination_id)}`;
    item.append(link);
    if (event.status === "partial") item.append(" ", element("span", "partial", "tag partial"));
    item.append(element("br"), element("span", (event.top_themes || []).join(", "), "quiet small"));
    prepend($("latest"), item);
  },
  "destination.failed": (event) => {
    making.delete(event.destination_id);
    job.failed += 1;
    $("failures-section").hidden = false;
    const item = element("li");
    item.append(element("span", label(event), "name"), " ", element("span", event.error_class, "tag failed"));
    item.append(element("br"), element("span", `${event.stage}: ${event.message}`, "quiet small"));
    prepend($("failures"), item);
  },
  "job.progress": (event) => {
    Object.assign(job, event);
    points.push([event.at, event.rate_per_second]);
    if (points.length > POINTS) points.splice(1, 1 + (Math.floor(points.length / 2) % 2));
    state("running");
  },
  "job.waiting": (event) => state(event.message ? "waiting" : "running", event.message ? `Waiting: ${event.message}` : ""),
  "job.paused": () => refresh(),
  "job.done": (event) => {
    Object.assign(job, event);
    state(event.state || "done");
    $("making-section").hidden = true;
    source.close();
  },
  gap: () => refresh(),
};

function remember(id) {
  shown.add(id);
  if (shown.size > 20000) shown.delete(shown.values().next().value);
}

// The job's figures as the server has them; undefined where it does not answer with them.
async function refresh() {
  const answer = await fetch(`${root}/jobs/${encodeURIComponent(data.job_id)}/status.json`);
  if (!answer.ok) return undefined;
  const status = await answer.json();
  Object.assign(job, status.counts);
  state(status.tag, status.words);
  later();
  return status;
}

function watch() {
  const since = lastId ? `?since=${encodeURIComponent(lastId)}` : "";
  source = new EventSource(`${root}/jobs/${encodeURIComponent(data.job_id)}/events${since}`);
  source.onopen = () => {
    $("lost").hidden = true;
  };
  source.onerror = () => {
    if (!data.is_final || source.readyState !== EventSource.CLOSED) $("lost").hidden = false;
    // A browser gives up after an answer other than 200: start again from the last event seen.
    if (source.readyState === EventSource.CLOSED) setTimeout(again, 2000);
  };
  for (const [kind, handle] of Object.entries(handlers)) {
    source.addEventListener(kind, (message) => {
      if (message.lastEventId) lastId = message.lastEventId;
      handle(JSON.parse(message.data));
      later();
    });
  }
}

// Only while the job may have more to say.
async function again() {
  try {
    const status = await refresh();
    if (status && status.is_final) {
      $("lost").hidden = true;
      $("making-section").hidden = true;
      return;
    }
  } catch {
    setTimeout(again, 2000);
    return;
  }
  watch();
}

figures();
chart();
addEventListener("resize", later);
// While it waits nothing happens that would tell how long it still does.
setInterval(() => {
  if (!document.hidden && $("state").textContent === "waiting") refresh();
}, 3000);
if (!data.is_final) watch();
