// What every page has, Flower's too: keys, the menus of the header, the chosen theme, times in the reader's zone.
const help = document.getElementById("keys");
const ROWS = "main tbody tr, main ul.list > li, main article.theme";

function isTyping(target) {
  return target.isContentEditable || ["INPUT", "SELECT", "TEXTAREA"].includes(target.tagName);
}

function move(by) {
  const rows = [...document.querySelectorAll(ROWS)].filter((row) => row.offsetParent && row.querySelector("a[href]"));
  if (!rows.length) return;
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by));
  rows[next].querySelector("a[href]").focus();
  rows[next].scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || isTyping(event.target) || help?.open) return;
  const search = document.querySelector("main input[type=search]");
  if (event.key === "/" && search) search.focus();
  else if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "?") help?.showModal();
  else return;
  event.preventDefault();
});
document.querySelector("[data-keys]")?.addEventListener("click", () => help.showModal());

const menus = [...document.querySelectorAll("details.menu")];
document.addEventListener("click", (event) => {
  for (const menu of menus) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  const open = event.key === "Escape" && menus.find((menu) => menu.open);
  if (!open) return;
  open.open = false;
  open.querySelector("summary").focus();
});

// Flower's theme.js, which ran before, keeps the choice and colours the page.
function mark() {
  let chosen = null;
  try {
    chosen = localStorage.getItem("flower-theme");
  } catch { /* a browser that keeps nothing */ }
  for (const button of document.querySelectorAll("[data-bs-theme-value]")) {
    button.setAttribute("aria-pressed", String(button.dataset.bsThemeValue === (chosen ?? "system")));
  }
}
mark();
for (const button of document.querySelectorAll("[data-bs-theme-value]")) button.addEventListener("click", () => setTimeout(mark));

const WHEN = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const ZONE = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" });
function localise(within) {
  for (const element of within.querySelectorAll("time[datetime]:not([data-local])")) {
    const at = new Date(element.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    const zone = ZONE.formatToParts(at).find((part) => part.type === "timeZoneName").value;
    element.dataset.local = "";
    element.title = element.textContent;
    element.textContent = `${WHEN.format(at)} ${zone}`;
  }
}
localise(document.querySelector("main.app-content") ? document.createElement("p") : document);
