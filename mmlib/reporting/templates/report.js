"use strict";
// A click on a heading sorts its table: numbers by their first number, then in reverse.
for (const head of document.querySelectorAll("table thead th")) {
  const body = head.closest("table").tBodies[0];
  if (!body || body.rows.length < 2 || !head.textContent.trim()) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.title = "sort";
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const up = head.ariaSort !== "ascending";
    const text = (row) => (row.cells[head.cellIndex]?.textContent || "").trim();
    const number = (row) => Number.parseFloat(text(row).replace(/^[^\d+.-]+/, "").replaceAll(",", ""));
    const rows = [...body.rows];
    const numeric = rows.every((row) => /^[<+-]?\s*\d|^[–-]?$/.test(text(row)));
    const order = (a, b) => numeric
      ? (number(a) || 0) - (number(b) || 0)
      : text(a).localeCompare(text(b), "en", { numeric: true });
    rows.sort((a, b) => (up ? order(a, b) : order(b, a)));
    body.append(...rows);
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.ariaSort = up ? "ascending" : "descending";
  };
}
