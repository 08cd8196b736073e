// A profile's buttons, which do nothing without a script: copy its JSON, print the page.
const print = document.getElementById("print");
const copy = document.getElementById("copy");
print.hidden = false;
print.addEventListener("click", () => window.print());
// Browsers lend the clipboard to this machine's pages and to https alone.
copy.hidden = !navigator.clipboard;
copy.addEventListener("click", async () => {
  const answer = await fetch(document.getElementById("json").href);
  if (!answer.ok) return;
  await navigator.clipboard.writeText(JSON.stringify(await answer.json(), null, 2));
  copy.textContent = "Copied";
  setTimeout(() => { copy.textContent = "Copy"; }, 2000);
});
