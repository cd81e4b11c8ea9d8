"""Looks and behaviour of the report page. Everything is inline: the page is one file and loads nothing."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --text: #1d2127; --muted: #667080; --line: #e4e6ea;
  --accent: #2f6fdb; --second: #c2571a; --good: #2f6fdb; --tick: #1d2127;
  --part-0: #9aa5b5; --part-1: #e0a458; --part-2: #2f6fdb; --part-3: #7fb069; --part-4: #9b72cf;
  --part-5: #58b0b3; --part-6: #c9463d; --part-7: #dfe2e7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1b1f25; --text: #e6e9ee; --muted: #97a1b0; --line: #2d333c;
    --accent: #6ea1f7; --second: #eb9158; --good: #4d84e0; --tick: #e6e9ee;
    --part-0: #6b7585; --part-1: #d99a4e; --part-2: #4d84e0; --part-3: #74a35f; --part-4: #9b78cc;
    --part-5: #4f9ea1; --part-6: #d1605a; --part-7: #333a44;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 44px 0 12px; }
p { margin: 0 0 12px; }
.muted { color: var(--muted); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.figures {
  display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-top: 24px;
}
.figure { padding: 14px 16px; }
.figure b { display: block; font-size: 28px; font-weight: 600; line-height: 1.25; letter-spacing: -0.02em; }
.figure span { display: block; font-size: 13px; color: var(--muted); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 12px; }
.chart { padding: 12px 14px 6px; margin: 0; }
.chart figcaption { font-size: 13px; color: var(--muted); margin-bottom: 4px; }
.chart svg { display: block; width: 100%; height: auto; }
.chart svg text { font-family: inherit !important; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--muted); font-size: 13px; }
td:first-child, th:first-child, .left { text-align: left; }
table[data-sortable] :is(th, td) { padding: 6px 8px; }
table :is(td, th):first-child { padding-left: 16px !important; }
table :is(td, th):last-child { padding-right: 16px !important; }
tbody tr:last-child td, tfoot tr:last-child td { border-bottom: 0; }
tbody tr:hover { background: color-mix(in srgb, var(--accent) 6%, transparent); }
tfoot td { font-weight: 600; border-top: 2px solid var(--line); }
th button {
  all: unset; cursor: pointer; border-radius: 4px;
}
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th[aria-sort] button { color: var(--text); }
th[aria-sort="descending"] button::after { content: " \\2193"; }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
.with-bar { display: flex; align-items: center; gap: 10px; justify-content: flex-end; }
.bar {
  position: relative; width: 96px; height: 9px; border-radius: 3px; background: var(--line); flex: none;
}
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--good); }
.bar u {
  position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; background: var(--tick);
}
.split { display: flex; height: 18px; border-radius: 5px; overflow: hidden; margin: 4px 0 12px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 22px; font-size: 14px; }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.columns {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 12px; align-items: start;
}
.pad { padding: 14px 16px; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { margin: 0; padding: 14px 16px; overflow-x: auto; }
summary { cursor: pointer; padding: 10px 16px; color: var(--muted); }
del { color: var(--muted); }
ins { text-decoration: none; font-weight: 600; }
.wrap td { white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 760px) { .figures { grid-template-columns: repeat(2, 1fr); } }
@media (max-width: 520px) { .charts { grid-template-columns: 1fr; } main { padding: 24px 14px 60px; } }
@media print { .card { break-inside: avoid; } }
"""

# Names of attributes in a row that wraps.
CHIPS = """
.chips { display: flex; flex-wrap: wrap; gap: 4px 6px; margin: 0 0 10px; font-size: 13px; }
.chips span { border: 1px solid var(--line); border-radius: 999px; padding: 1px 9px;
  background: var(--card); }
.chips .wrong { border-color: var(--second); color: var(--second); }
.chips b { font-weight: 500; color: var(--muted); padding: 2px 4px 0 0; }
"""

# Sorts the table's body by the clicked column: numbers fall first, names rise first, "–" stays last.
SCRIPT = """
document.querySelectorAll("table[data-sortable] th").forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const table = head.closest("table"), body = table.tBodies[0];
    const key = row => row.cells[column].dataset.value;
    const numeric = head.dataset.kind === "number";
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (numeric ? x - y : x.localeCompare(y));
    };
    body.append(...[...body.rows].sort(compare));
  });
});
"""
