"""How a page looks: light and dark by the reader's choice, for phones and desks, and on paper."""

COLOURS = """
:root {
  --page: #fbfbfa; --card: #ffffff; --ink: #1b1d22; --soft: #5b616e; --line: #dfe1e6;
  --grid: #eceef1; --view: #0067a5; --sleep: #7a35d0; --format: #a35200; --slow: #b3261e;
  --packed: #00695c; --night: rgba(30, 22, 52, .82);
    --veil: #fbfbfacc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --card: #1b1e24; --ink: #e8eaee; --soft: #a2a9b6; --line: #343943;
    --grid: #272b33; --view: #5cb8f2; --sleep: #bf96ff; --format: #f2a65a; --slow: #ff8a80;
    --packed: #5ec8b6;
    --veil: #14161acc;
  }
}
"""

_TEXT = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 980px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 10px; }
h3 { font-size: 1rem; margin: 20px 0 8px; }
p { margin: 0 0 12px; max-width: 72ch; }
.lead { font-size: 1.1rem; }
.note, figcaption { color: var(--soft); font-size: .875rem; }
figure { margin: 0; }
table + .note, .levers + .note { margin-top: 8px; }
code { font: .9em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
ul { padding-left: 20px; margin: 0; max-width: 72ch; }
li { margin-bottom: 8px; }
.store { position: absolute; }

.deals { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 12px;
  margin: 18px 0 0; }
.deal { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; }
.deal b { display: block; font-size: 1.5rem; line-height: 1.25; font-weight: 650; }
.deal span { display: block; color: var(--soft); font-size: .875rem; }
"""

# Of charts, and of what explains their colours.
CHART = """
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 8px; padding: 0;
  list-style: none; font-size: .9rem; max-width: none; }
.key li { display: flex; align-items: center; gap: 6px; margin: 0; }
.key svg { width: 14px; height: 14px; flex: none; }
svg .dot { stroke: var(--page); stroke-width: 1.5; }
svg .dot.view, svg .dot.size { fill: var(--view); }
svg .dot.sleep, svg .dot.remember { fill: var(--sleep); }
svg .dot.format, svg .dot.skip { fill: var(--format); }
svg .dot.packed { fill: var(--packed); }
svg .dot.awake { fill: var(--page); stroke: var(--ink); stroke-width: 2; }
b.view, tspan.view, b.size, tspan.size {
  color: var(--view); fill: var(--view); font-weight: 600; }
b.sleep, tspan.sleep, b.remember, tspan.remember {
  color: var(--sleep); fill: var(--sleep); font-weight: 600; }
b.format, tspan.format, b.skip, tspan.skip {
  color: var(--format); fill: var(--format); font-weight: 600; }
b.packed, tspan.packed { color: var(--packed); fill: var(--packed); font-weight: 600; }
.chart { display: block; width: 100%; height: auto; overflow: visible; font-size: 13px;
  margin-bottom: 14px; }
.chart.narrow { display: none; max-width: 480px; }
.chart text { fill: var(--ink); } .chart .tick, .chart .axis { fill: var(--soft); }
.chart .grid { stroke: var(--grid); } .chart .zero { stroke: var(--soft); }
.chart .whisker { stroke: var(--soft); stroke-width: 1.5; opacity: .6; }
.chart .lead { fill: none; stroke: var(--line); }
.chart .spare { fill: var(--soft); opacity: .5; }
.chart .name { font-weight: 600; }
.chart circle.present { fill: none; stroke: var(--ink); stroke-width: 2; }
.chart text.present { font-weight: 700; text-decoration: underline; }
@media (max-width: 820px) {
  .chart.wide { display: none; } .chart.narrow { display: block; }
}
"""

_REST = """
table { border-collapse: collapse; width: 100%; font-size: .9375rem;
  font-variant-numeric: tabular-nums; }
th { text-align: right; color: var(--soft); font-weight: 500; font-size: .8125rem;
  vertical-align: bottom; }
th, td { padding: 7px 0 7px 14px; border-bottom: 1px solid var(--line); }
td { text-align: right; white-space: nowrap; }
th.what, td.what { text-align: left; white-space: normal; padding-left: 0; }
td.what { padding-left: 1.8em; text-indent: -1.8em; min-width: 15em; }
td.what .n { display: inline-block; min-width: 1.8em; color: var(--soft); text-indent: 0; }
tr.awake td { color: var(--soft); }
.slow { color: var(--slow); }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--soft); }

.levers { display: grid; gap: 0; }
.turn { display: grid; grid-template-columns: 2.2em 1fr 1fr 1.4fr; gap: 4px 14px;
  align-items: center; padding: 9px 0; border-bottom: 1px solid var(--line); font-size: .9375rem; }
.of4 .turn { grid-template-columns: 2.2em 1fr 1.3fr 1.5fr .8fr; }
.turn.head { color: var(--soft); font-size: .8125rem; padding: 0 0 4px; }
.turn .n { color: var(--soft); }
.turn .all { grid-column: 2 / -1; color: var(--soft); }
.turn .cell { display: flex; align-items: center; gap: 10px; min-width: 0; }
.turn .off { color: var(--soft); }
.schema { width: 30px; height: 30px; flex: none; }
.schema .whole { fill: none; stroke: var(--soft); }
.schema .middle { fill: var(--view); opacity: .75; }
.rates { width: 100%; max-width: 230px; height: 30px; flex: 1 1 60px; min-width: 40px; }
.rates .base { fill: var(--grid); } .rates .bar { fill: var(--sleep); }

.moments { width: 108px; height: 24px; flex: none; }
.moments .base { fill: var(--grid); }
.moments .on.skip { fill: var(--format); } .moments .on.remember { fill: var(--sleep); }

.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr));
  gap: 20px 18px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; }
.nights { display: grid; gap: 8px;
  grid-template-columns: repeat(var(--columns), minmax(0, 190px)); }
.film { display: grid; gap: 8px; grid-template-columns: repeat(8, minmax(0, 1fr)); }
.film span { display: block; font-size: .75rem; line-height: 1.3; overflow-wrap: anywhere; }
.film .night { fill: var(--night); fill-rule: evenodd; }
.strays { color: var(--slow); font-weight: 600; }
.picture { display: block; width: 100%; height: auto; border-radius: 4px; background: var(--grid); }
.picture .veil { fill: var(--veil); fill-rule: evenodd; }
.picture .frame { fill: none; stroke: var(--view); }
.pixels { image-rendering: pixelated; }
.scale { white-space: nowrap; }
.scale i { display: inline-block; width: 90px; height: .75em; border-radius: 3px; margin: 0 6px;
  border: 1px solid var(--line);
  background: linear-gradient(90deg, rgba(126, 58, 220, 0), rgba(126, 58, 220, .85)); }

dl { margin: 0; display: grid; grid-template-columns: minmax(120px, 180px) 1fr; gap: 8px 18px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; max-width: 72ch; }
footer { margin-top: 44px; color: var(--soft); font-size: .8125rem; }

@media (max-width: 720px) {
  main { padding: 20px 16px 40px; }
  h1 { font-size: 1.45rem; } h2 { margin-top: 36px; } .lead { font-size: 1rem; }
  .deals { grid-template-columns: 1fr; gap: 8px; }
  .deal { display: grid; grid-template-columns: 5.2rem 1fr; gap: 0 10px; align-items: baseline; }
  .deal b { grid-row: span 2; }
  table, tbody { display: block; } thead { display: none; }
  tr { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 22px;
    padding: 10px 0; border-bottom: 1px solid var(--line); }
  td { border: 0; padding: 2px 0; display: flex; justify-content: space-between; gap: 8px; }
  td::before { content: attr(data-label); color: var(--soft); font-size: .8125rem;
    white-space: nowrap; }
  td:empty { display: none; }
  td.what { grid-column: 1 / -1; display: block; padding: 0 0 4px 1.8em; }
  td.what::before { content: none; }
  .film { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .turn, .of4 .turn { grid-template-columns: 1.6em minmax(0, 1fr); }
  .turn .n { grid-row: span 4; align-self: start; } .turn .cell { grid-column: 2; }
  .turn.head, .turn .off { display: none; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 10px; }
}
@media print {
  body { background: #fff; } main { max-width: none; padding: 0; }
  figure, .turn, tr, .deal { break-inside: avoid; }
}
"""

STYLE = COLOURS + _TEXT + CHART + _REST
