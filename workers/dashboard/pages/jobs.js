// The list of jobs, kept up to date: asked for again every two seconds while somebody looks.
const root = document.body.dataset.root;
const body = document.getElementById("jobs");
const lost = document.getElementById("lost");

function rowOf(id) {
  return body ? [...body.rows].find((row) => row.dataset.job === id) : undefined;
}

function show(job) {
  const row = rowOf(job.job_id);
  if (!row) return false;
  const cells = row.cells;
  const tag = cells[1].firstElementChild;
  tag.textContent = job.tag;
  tag.className = `tag ${job.tag}`;
  const words = cells[0].querySelector(".words");
  words.hidden = job.tag !== "waiting";
  words.textContent = job.words;
  cells[2].querySelector(".num").textContent = `${job.ended} of ${job.total}`;
  const bar = cells[2].querySelector("progress");
  bar.max = job.total || 1;
  bar.value = job.ended;
  [job.failed, job.rate, job.calls, job.hits, job.cost, job.time].forEach((text, at) => {
    cells[3 + at].textContent = text;
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
