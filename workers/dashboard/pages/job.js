// One job, live. Everything from outside becomes text (textContent), or comes escaped from the server.
import { drawRates } from "./chart.js";
import { duration, left, money, percent, rate, whole } from "./words.js";

const root = document.body.dataset.root;
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const KEPT = 50; // destinations of each kind in the page
const RUNNING = 5; // of those under way, beside the others
const POINTS = 400; // of the chart
const REST_MS = 5000; // before the first question for what only the server can say; each next one waits longer
const LONGEST_REST_MS = 60000;
// Between two looks at what limits the job.
const VERDICT_MS = 3000;

const job = { ...data.counts };
const points = data.points.slice();
const running = new Map(Object.entries(data.running));
const states = new Map([...$("rows").rows].map((row) => [row.dataset.destination, row.dataset.state]));
let filter = "all";
let source;
let lastId = data.last_id;
let redraw = 0;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function put(id, text) {
  const found = $(id);
  if (found && found.textContent !== text) found.textContent = text;
}

function figures() {
  const ended = job.done + job.failed;
  const asked = job.llm_calls + job.cache_hits + (job.coalesced || 0);
  put("ended", whole.format(ended));
  put("ended-of", `of ${whole.format(job.total)}`);
  put("of", whole.format(job.total));
  put("partial", whole.format(job.partial));
  put("failed", whole.format(job.failed));
  put("rate", rate(job.rate_per_second));
  put("eta", duration(job.eta_seconds));
  put("calls", whole.format(job.llm_calls));
  put("calls-of", asked ? `${percent((asked - job.llm_calls) / asked)} from the cache` : "");
  put("tokens", whole.format(job.prompt_tokens + job.completion_tokens));
  put("cost", money(job.cost_usd));
  const parts = { complete: job.done - job.partial, partial: job.partial, failed: job.failed };
  bar(parts);
  for (const [name, number] of Object.entries(parts)) document.querySelector(`[data-part=${name}]`).textContent = whole.format(number);
  if ($("state").textContent === "running" && ended <= job.total) {
    const eta = job.eta_seconds == null ? "" : `, about ${left(job.eta_seconds)} left`;
    put("sentence", `${whole.format(ended)} of ${whole.format(job.total)} finished${eta}.`);
    $("bar").setAttribute("aria-label", $("sentence").textContent);
  }
}

// As `parts` in job_words.py.
function bar(parts) {
  const widths = Object.entries(parts).map(([name, n]) => [name, n > 0 ? Math.max(4, (1000 * n) / Math.max(1, job.total)) : 0]);
  const largest = widths.reduce((a, b) => (b[1] > a[1] ? b : a));
  largest[1] -= Math.max(0, widths.reduce((sum, each) => sum + each[1], 0) - 1000);
  let x = 0;
  for (const [name, width] of widths) {
    const rect = $("bar").querySelector(`.${name}`);
    rect.setAttribute("x", x.toFixed(1));
    rect.setAttribute("width", width.toFixed(1));
    x += width;
  }
}

function state(word, words = "") {
  $("state").textContent = word;
  $("state").className = `tag ${word}`;
  $("words").textContent = words;
  $("words").hidden = !words;
}

function runningRows() {
  const body = $("running");
  body.hidden = !running.size || !["all", "running"].includes(filter);
  const made = [...running].slice(filter === "running" ? -KEPT : -RUNNING).reverse();
  body.replaceChildren(
    ...made.map(([, each]) => {
      const row = element("tr");
      const name = element("td");
      name.append(element("span", each.name, "name"), element("br"), element("span", each.found.join(" · ") || " ", "quiet small"));
      const tag = element("td");
      tag.append(element("span", "running", "tag running"));
      const steps = element("td", data.steps ? `${each.answers} of ${data.steps} steps` : `${each.answers} steps`, "num");
      steps.colSpan = 3;
      row.append(name, tag, steps);
      return row;
    }),
  );
}

// The last of each kind stay; what the filter does not choose is hidden.
function rows() {
  const counts = { all: 0, complete: 0, partial: 0, failed: 0 };
  let shown = filter === "running" ? running.size : 0;
  for (const row of [...$("rows").rows]) {
    const kind = row.dataset.state;
    counts.all += 1;
    counts[kind] += 1;
    if (counts.all > KEPT && (kind === "complete" || counts[kind] > KEPT)) {
      row.remove();
      continue;
    }
    row.hidden = filter === "all" ? counts.all > KEPT : kind !== filter;
    shown += !row.hidden;
  }
  $("none").hidden = shown > 0;
  $("none").textContent = filter === "all" ? "None yet." : `None ${filter}.`;
}

function rowOf(event, kind) {
  const row = element("tr", undefined, "arrived");
  row.dataset.destination = event.destination_id;
  row.dataset.state = kind;
  const text = [event.name, event.country].filter(Boolean).join(", ");
  const name = element("td");
  const said = event.message?.startsWith(`${event.error_class}: `) ? event.message : [event.error_class, event.message].filter(Boolean).join(": ");
  const why = kind === "failed" ? `${event.stage}: ${said}` : (event.top_themes || []).join(", ");
  if (kind === "failed") name.append(element("span", text, "name"));
  else {
    const link = element("a", text, "name");
    link.href = `${root}/jobs/${encodeURIComponent(data.job_id)}/destinations/${encodeURIComponent(event.destination_id)}`;
    name.append(link);
  }
  if (why) name.append(element("br"), element("span", why, "quiet small"));
  const tag = element("td");
  tag.append(element("span", kind, `tag ${kind}`));
  row.append(name, tag);
  const time = duration(event.elapsed_ms == null ? null : event.elapsed_ms / 1000);
  for (const each of [percent(event.quality), event.themes == null ? "–" : String(event.themes), time]) row.append(element("td", each, "num"));
  return row;
}

function outcome(event, kind) {
  const id = event.destination_id;
  const before = states.get(id);
  running.delete(id);
  if (before === kind) return;
  if (before) {
    // It was asked again.
    job[before === "failed" ? "failed" : "done"] -= 1;
    if (before === "partial") job.partial -= 1;
    document.querySelector(`#rows [data-destination="${CSS.escape(id)}"]`)?.remove();
  }
  states.delete(id);
  states.set(id, kind);
  if (states.size > 20000) states.delete(states.keys().next().value);
  job[kind === "failed" ? "failed" : "done"] += 1;
  if (kind === "partial") job.partial += 1;
  $("rows").prepend(rowOf(event, kind));
  if (kind !== "complete") problems();
}

const handlers = {
  "job.started": (event) => {
    job.total = event.total || job.total;
    if (!points.length) points.push([event.at, 0]);
    state("running");
  },
  "stage.done": (event) => {
    // News of the last stages may come after the destination itself.
    if (states.has(event.destination_id)) return;
    const each = running.get(event.destination_id) || { name: event.name, answers: 0, found: [] };
    each.answers += 1;
    each.found = [...(event.found || []).slice(0, 2), ...each.found].slice(0, 4);
    running.delete(event.destination_id);
    running.set(event.destination_id, each);
    if (running.size > 500) running.delete(running.keys().next().value);
  },
  "destination.done": (event) => outcome(event, event.status === "partial" ? "partial" : "complete"),
  "destination.failed": (event) => outcome(event, "failed"),
  "job.progress": (event) => {
    Object.assign(job, event);
    // The first rate is of a moment, and would dwarf all others.
    if (!points.length || event.at - points[0][0] >= 2) points.push([event.at, event.rate_per_second]);
    if (points.length > POINTS) points.splice(1, 1 + (Math.floor(points.length / 2) % 2));
    if ($("state").textContent === "paused") refresh();
    else state("running");
  },
  "job.waiting": (event) => state(event.message ? "waiting" : "running", event.message ? `Waiting: ${event.message}` : ""),
  "job.paused": () => {
    running.clear();
    refresh();
  },
  "job.done": (event) => {
    Object.assign(job, event);
    state(event.state || "done");
    source.close();
    end();
  },
  gap: () => refresh(),
};

function end() {
  running.clear();
  refresh().finally(() => problems(0));
}

// Drawing is put off to the next frame, however many events came.
function later() {
  if (!redraw) {
    redraw = requestAnimationFrame(() => {
      redraw = 0;
      figures();
      rows();
      runningRows();
      drawRates($("chart"), points, $("at"));
      $("speed").hidden = points.length < 2;
    });
  }
}

// The job's figures as the server has them; undefined where it does not answer with them.
async function refresh() {
  const answer = await fetch(`${root}/jobs/${encodeURIComponent(data.job_id)}/status.json`);
  if (!answer.ok) return undefined;
  const status = await answer.json();
  Object.assign(job, status.counts);
  state(status.tag, status.words);
  if (status.sentence) put("sentence", status.sentence);
  put("verdict", status.verdict);
  put("batches", status.batches);
  $("batches").hidden = !status.batches;
  later();
  return status;
}

// What the server groups and what can be done now: both as it draws them, unless they are in use.
let asking = 0;
let rest = REST_MS;
function problems(wait = rest) {
  if (asking && wait) return;
  clearTimeout(asking);
  asking = setTimeout(drawProblems, wait);
  if (wait) rest = Math.min(2 * rest, LONGEST_REST_MS);
}

let questions = 0;
async function drawProblems() {
  asking = 0;
  const mine = ++questions;
  try {
    const answer = await fetch(location.pathname);
    const text = await answer.text();
    // One that was asked earlier may be answered later.
    if (!answer.ok || mine !== questions) return;
    const made = new DOMParser().parseFromString(text, "text/html");
    for (const id of ["acts", "problems"]) {
      const isUsed = $(id).contains(document.activeElement) || $(id).querySelector("details[open]");
      if (!isUsed) $(id).replaceChildren(...made.getElementById(id).childNodes);
    }
    $("problems-section").hidden = made.getElementById("problems-section").hidden;
    for (const name of ["eta", "duration"]) {
      const tile = made.getElementById(name);
      if (tile && !$(name)) ($("eta") || $("duration")).closest("div").replaceWith(tile.closest("div"));
    }
    document.querySelector(".facts").replaceWith(made.querySelector(".facts"));
    } catch {
    // The next change asks again.
  }
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

// What limits the job changes without an event.
function lookAgain() {
  if (!data.is_final && !document.hidden && source && source.readyState !== EventSource.CLOSED) {
    refresh().catch(() => {}); // the events tell of a lost connection
  }
  setTimeout(lookAgain, VERDICT_MS);
}
setTimeout(lookAgain, VERDICT_MS);

// Only while the job may have more to say.
async function again() {
  try {
    const status = await refresh();
    if (status && status.is_final) {
      $("lost").hidden = true;
      end();
      return;
    }
  } catch {
    setTimeout(again, 2000);
    return;
  }
  watch();
}

document.addEventListener("click", async (event) => {
  const chip = event.target.closest("[data-filter]");
  if (chip && !event.metaKey && !event.ctrlKey && !event.shiftKey) {
    event.preventDefault();
    filter = chip.dataset.filter === filter ? "all" : chip.dataset.filter;
    for (const each of document.querySelectorAll("[data-filter]")) {
      if (each.dataset.filter === filter) each.setAttribute("aria-current", "true");
      else each.removeAttribute("aria-current");
    }
    later();
  }
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    getSelection().selectAllChildren(copy.parentElement.querySelector("code"));
    let done = "Selected"; // where a browser gives no clipboard
    try {
      await navigator.clipboard.writeText(copy.dataset.copy);
      done = "Copied";
    } catch {
      // It is selected.
    }
    copy.textContent = done;
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  }
});

later();
addEventListener("resize", later);
// While it waits nothing happens that would tell how long it still does.
setInterval(() => {
  if (!document.hidden && ["waiting", "paused"].includes($("state").textContent)) refresh();
}, 3000);
if (!data.is_final) watch();
