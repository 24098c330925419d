"use strict";
// Sorting: numbers by their unrounded values, everything else as text; fields without a value come last.
const value = (row, at) => {
  const field = row.cells[at];
  return field.dataset.v === undefined ? (field.textContent || null) : Number(field.dataset.v);
};
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
document.addEventListener("click", (event) => {
  const head = event.target.closest("th");
  if (!head || !event.target.closest("button")) return;
  const body = head.closest("table").tBodies[0];
  const down = head.ariaSort === "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.ariaSort = down ? "descending" : "ascending";
  const rows = Array.from(body.rows, (row) => [value(row, head.cellIndex), row]);
  const empty = (key) => key === null;
  rows.sort(([a], [b]) => empty(a) || empty(b) ? empty(a) - empty(b) : (down ? -1 : 1) * compare(a, b));
  body.append(...rows.map(([, row]) => row));
});
// Filters: what carries tags (indices of model, strategy and policies) is shown if it has all that were chosen.
const filters = document.getElementById("filters");
const filter = () => {
  const chosen = Array.from(filters.querySelectorAll("select"), (select) => [Number(select.dataset.at), select.value]).filter(([, index]) => index !== "");
  for (const marked of document.querySelectorAll("[data-t]")) {
    const tags = marked.dataset.t.split(" ");
    marked.classList.toggle("off", !chosen.every(([at, index]) => tags[at] === index));
  }
  const count = (selector) => document.querySelectorAll(".section > .wide " + selector).length;
  document.getElementById("shown").textContent = chosen.length ? `${count("tr[data-t]:not(.off)")} of ${count("tr[data-t]")} rows` : "";
};
filters.addEventListener("change", filter);
filters.addEventListener("submit", (event) => event.preventDefault());
// Light and dark: as the system has it, until the button is pressed.
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
// A link into a folded part unfolds it; printing unfolds all parts.
const unfold = () => document.getElementById(location.hash.slice(1))?.setAttribute("open", "");
addEventListener("hashchange", unfold);
unfold();
addEventListener("beforeprint", () => document.querySelectorAll(".section").forEach((part) => part.setAttribute("open", "")));
filter();
