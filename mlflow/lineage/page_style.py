"""How the lineage page looks: light and dark, the picture across on a desktop and down on a phone."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --ink: #1c2126; --soft: #5c6670; --line: #d5d9dd; --card: #fff;
  --source: #6b7280; --torch: #c2410c; --onnx: #6d28d9; --tensorflow: #0f766e; --registry: #0369a1;
  --holds: #15803d; --broken: #b91c1c; --unknown: #a16207; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e8ebee; --soft: #a0a9b2; --line: #363d44;
  --card: #1d2328; --source: #9ca3af; --torch: #fb923c; --onnx: #a78bfa; --tensorflow: #2dd4bf; --registry: #38bdf8;
  --holds: #4ade80; --broken: #f87171; --unknown: #facc15; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
header p { margin: .2rem 0; color: var(--soft); }
code { font: .85em/1.4 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.alias { display: inline-block; font-size: .8rem; font-weight: 600; line-height: 1.6; padding: 0 .6em;
  border-radius: 1em; border: 1.5px solid var(--registry); color: var(--registry); vertical-align: middle; }
header .verdict { display: inline-block; margin-top: .7rem; padding: .3rem .8rem; border-radius: .4rem;
  border: 1.5px solid currentColor; font-weight: 600; }
.holds { color: var(--holds); } .broken { color: var(--broken); } .unknown { color: var(--unknown); }
figure { margin: 1.6rem 0 0; overflow-x: auto; } figcaption { margin-top: .8rem; }
.graph { width: 100%; height: auto; display: block; } .graph.down { display: none; margin: 0 auto; }
.edge { fill: none; stroke: var(--soft); stroke-width: 1.5; opacity: .7; }
.box rect { fill: var(--card); stroke: var(--tint); stroke-width: 2; }
.box text { font-size: 12px; fill: var(--ink); } .box .name { font-weight: 600; fill: var(--tint); }
.box .id { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 11px; }
.box .fact { fill: var(--soft); font-size: 11px; }
.dot.holds { fill: var(--holds); } .dot.broken { fill: var(--broken); } .dot.unknown { fill: var(--unknown); }
.box .mark { fill: var(--card); font-size: 9px; font-weight: 700; text-anchor: middle; }
.source { --tint: var(--source); } .torch { --tint: var(--torch); } .onnx { --tint: var(--onnx); }
.tensorflow { --tint: var(--tensorflow); } .registry { --tint: var(--registry); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 0; padding: 0;
  font-size: .85rem; color: var(--soft); }
.legend li::before { content: ""; display: inline-block; width: .8em; height: .8em; margin-right: .5em;
  border-radius: 3px; background: var(--tint); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } td { overflow-wrap: anywhere; } td:first-child { white-space: nowrap; }
.state { font-weight: 600; } .lost td { color: var(--soft); text-decoration: line-through; }
summary { cursor: pointer; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--tint); border-radius: 8px;
  padding: .8rem 1rem; min-width: 0; }
.card:target { outline: 2px solid var(--tint); } .card h3 { color: var(--tint); } .card p { margin: .2rem 0 .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: 0; font-size: .88rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
dd dl { font-size: 1em; }
@media (max-width: 700px) { main { padding: 16px 14px 48px; } h1 { font-size: 1.35rem; }
  .graph.across { display: none; } .graph.down { display: block; } .cards { grid-template-columns: minmax(0, 1fr); }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: .4rem; }
  thead { display: none; } tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  td { display: block; border: 0; padding: .05rem 0; } }
@media print { .graph.down { display: none; } }
"""
