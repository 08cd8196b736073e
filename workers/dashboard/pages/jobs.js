// The list of jobs, kept up to date: asked for again every two seconds while it is looked at.
const root = document.body.dataset.root;
const body = document.getElementById("jobs");
const lost = document.getElementById("lost");
const whole = new Intl.NumberFormat("en");

function rowOf(id) {
  return body ? [...body.rows].find((row) => row.dataset.job === id) : undefined;
}

function show(job) {
  const row = rowOf(job.job_id);
  if (!row) return false;
  const tag = row.cells[1].firstElementChild;
  tag.textContent = job.tag;
  tag.className = `tag ${job.tag}`;
  const words = row.querySelector(".words");
  words.textContent = job.words || (job.is_final ? "" : job.batches);
  words.hidden = !words.textContent;
  row.querySelector("[data-is=finished]").textContent = `${whole.format(job.ended)} of ${whole.format(job.total)}`;
  row.querySelector("[data-is=rest]").textContent = job.rest;
  for (const part of job.parts) {
    const rect = row.querySelector(`rect.${part.name}`);
    rect.setAttribute("x", part.x);
    rect.setAttribute("width", part.width);
  }
  [whole.format(job.partial), whole.format(job.failed), job.rate, job.calls, job.cost, job.time].forEach((text, at) => {
    row.cells[3 + at].textContent = text;
  });
  return true;
}

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch(`${root}/jobs.json`, { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(answer.statusText);
    const jobs = await answer.json();
    lost.hidden = true;
    // A job that is not in the table yet: the server draws it.
    if (!jobs.map(show).every(Boolean)) location.reload();
  } catch {
    lost.hidden = false;
  }
}

setInterval(refresh, 2000);
