"""How the live page looks: the report's colours and charts, laid out for a desk and a phone."""

from drowsy.reporting.style import CHART, COLOURS

STYLE = (
    COLOURS
    + CHART
    + """
* { box-sizing: border-box; }
:root, body { --q-primary: var(--view) !important; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
.nicegui-content { display: block; max-width: 1240px; margin: 0 auto; padding: 18px 20px 40px; }
h1 { font-size: 1.5rem; line-height: 1.2; font-weight: 650; margin: 0; overflow-wrap: anywhere;
  letter-spacing: 0; }
h2 { font-size: 1.1rem; line-height: 1.3; font-weight: 600; margin: 26px 0 8px;
  letter-spacing: 0; }
h3 { font-size: .8125rem; line-height: 1.3; font-weight: 500; color: var(--soft); margin: 0;
  letter-spacing: 0; }
p { margin: 0; }
.note, figcaption { color: var(--soft); font-size: .875rem; }
.slow { color: var(--slow); }

.top { display: grid; grid-template-columns: 450px minmax(0, 1fr); gap: 18px 26px;
  margin-top: 14px; align-items: start; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; }
.see { padding: 0; overflow: hidden; } .see .body { padding: 10px 16px 14px; }
.see .shown { width: 100%; aspect-ratio: 1; background: var(--grid); display: block; }
.see .shown img { display: block; }
.answers { display: grid; gap: 4px; margin-top: 8px; }
.answer { display: grid; grid-template-columns: minmax(0, 1fr) 90px 3.2em; gap: 10px;
  align-items: center; }
.answer:first-child { font-weight: 650; }
.answer span:first-child { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.answer i { height: 8px; border-radius: 4px; background: var(--grid); overflow: hidden; }
.answer i b { display: block; height: 100%; background: var(--view); }
.answer span:last-child { text-align: right; font-variant-numeric: tabular-nums; }

.saved { font-size: 1.5rem; line-height: 1.25; font-weight: 650; }
.body > div > .note { min-height: 2.7em; }
.setting { min-height: 1.5em; }
.turn .q-slider { padding: 0 4px; }
.budgets { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: flex-start;
  margin-top: 8px; }
.budgets .q-field { width: 128px; } .layer { width: 260px; max-width: 100%; }
.governor { min-height: 2.7em; overflow-wrap: anywhere; }
details { font-size: .875rem; color: var(--soft); } summary { cursor: pointer; }
details p { margin-top: 4px; overflow-wrap: anywhere; }
summary { display: list-item; list-style: disclosure-closed inside; }
details[open] summary { list-style-type: disclosure-open; }

.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(205px, 1fr)); gap: 12px;
  margin-top: 14px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 12px 6px; min-width: 0; }
.tile .value { font-size: 1.25rem; font-weight: 650; line-height: 1.3; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; font-variant-numeric: tabular-nums; }
.tile .value span { font-size: .75rem; font-weight: 400; color: var(--soft);
  margin-left: 6px; }
.tile.none { grid-column: 1 / -1; padding-bottom: 9px; }
.tile .why { font-size: .8125rem; line-height: 1.35; color: var(--soft);
  overflow-wrap: anywhere; }
.tile h3 { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.tile.none h3 { white-space: normal; }
.tile svg { display: block; width: 100%; height: auto; overflow: visible; font-size: 12px; }
.tile .tick { fill: var(--soft); } .tile .grid { stroke: var(--grid); }
.tile .run { fill: none; stroke: var(--view); stroke-width: 1.75; stroke-linejoin: round; }
.tile .now { fill: var(--view); }
.tile .budget { stroke: var(--slow); stroke-width: 1.5; stroke-dasharray: 5 4; }
.frontier figure { margin: 0; } .frontier .chart.wide { max-width: 900px; }

@media (max-width: 1000px) { .top { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 720px) {
  .nicegui-content { padding: 14px 14px 32px; }
  h1 { font-size: 1.25rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .tile { padding: 8px 9px 4px; } .tile .value { font-size: 1.05rem; }
  .tile .value span { display: block; margin: 0; }
  .tile:first-child { grid-column: 1 / -1; }
  .budgets { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .budgets .q-field { width: auto; }
  .see .shown { width: min(100%, 42vh); margin: 0 auto; }
}
"""
)
