// The LLM page, kept up to date: asked for again while somebody looks, and what is marked as live is put in.
// The server has escaped every text, and what DOMParser reads runs no script.
const PAUSE_MS = 3000;
const lost = document.getElementById("lost");

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok) throw new Error(answer.statusText);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const fresh of page.querySelectorAll("[data-live]")) {
      const here = document.getElementById(fresh.id);
      // Only what has changed, so that nobody's selection or scroll position goes.
      if (here && here.innerHTML !== fresh.innerHTML) here.replaceChildren(...document.adoptNode(fresh).childNodes);
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

setTimeout(keepUp, PAUSE_MS);
document.addEventListener("visibilitychange", refresh);
