"""Style sheet and script of the report."""

# Enforced by the browser: the page must not fetch anything.
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

# From this share of the scale on, a colored cell is dark enough for its number to be written in white.
DARK = 0.65

CSS = """
:root {
  --paper: #fdfcfa; --raised: #ffffff; --ink: #22262b; --soft: #686d75; --faint: #e7e3dc; --wash: #f4f1ec;
  --c0: #2c6a9b; --c1: #cc6a2f; --c2: #43875a; --c3: #8257a5; --c4: #a8842c; --c5: #b8476b;
  --heat: #215a8a; --on-heat: #ffffff; --right: #2f8a57;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Charter, Georgia, "Liberation Serif", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --raised: #1b1e22; --ink: #e3e1dc; --soft: #989ca3; --faint: #2d3136; --wash: #202328;
    --c0: #77b0de; --c1: #e8986a; --c2: #83c295; --c3: #b99bdc; --c4: #d3b565; --c5: #e58aa7;
    --heat: #34739f; --on-heat: #f5f4f0; --right: #7fcf9d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 var(--sans); }
main { max-width: 1040px; margin: 0 auto; padding: 56px 32px 40px; overflow-wrap: break-word; }
header { margin-bottom: 60px; }
h1, h2 { font-family: var(--serif); font-weight: 500; line-height: 1.15; text-wrap: balance; }
h1 { font-size: 42px; letter-spacing: -.01em; margin: 4px 0 14px; overflow-wrap: anywhere; }
h2 { font-size: 25px; margin: 0 0 6px; }
h3 { font-size: 13px; font-weight: 600; margin: 10px 0 6px; }
section { margin: 0 0 60px; padding-top: 22px; border-top: 1px solid var(--faint); }
figure { margin: 18px 0 0; min-width: 0; }
ol { list-style: none; margin: 0; padding: 0; }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px; background: var(--wash); }
small { font-size: 12px; color: var(--soft); }
code { font: .92em var(--mono); overflow-wrap: anywhere; }
.over { margin: 0; font-size: 12px; letter-spacing: .09em; text-transform: uppercase; color: var(--soft); }
.summary { margin: 0; max-width: 720px; font: 18px/1.5 var(--serif); }
.summary em { color: var(--c1); font-style: normal; }
.lead { margin: 0 0 14px; max-width: 760px; color: var(--soft); text-wrap: pretty; }
.note { margin: 8px 0 0; font-size: 12.5px; color: var(--soft); }
.box { overflow-x: auto; }
footer { color: var(--soft); font-size: 12.5px; }
footer p { margin: 4px 0; }

.cards { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 30px; }
.card { flex: 1 1 145px; min-width: 0; max-width: 232px;
  background: var(--raised); border: 1px solid var(--faint); border-radius: 10px; padding: 14px 15px 13px; }
.card span, .card small { display: block; color: var(--soft); font-size: 12.5px; line-height: 1.4; }
.card span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.card strong { display: block; font: 500 29px/1.25 var(--serif); font-variant-numeric: lining-nums tabular-nums;
  white-space: nowrap; }
.card strong i { font: normal 13px var(--sans); color: var(--soft); }
.cards:has(.card:nth-child(6)) strong { font-size: 24px; }

.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 40px; }
/* Headings, plots and notes of charts in one row stand at one height each. */
.chart { display: grid; grid-row: span 3; grid-template-rows: subgrid; }
.chart > * { min-width: 0; }
.charts.three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
figcaption { display: flex; flex-wrap: wrap; align-items: baseline; align-content: end; gap: 2px 14px;
  margin-bottom: 12px; font-size: 14px; overflow-wrap: anywhere; }
figcaption .last { color: var(--soft); font-size: 12.5px; }
.key { font-size: 12.5px; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: var(--c); }
.key.dashed::before { background: repeating-linear-gradient(90deg, var(--c) 0 4px, transparent 4px 6px); }
.key.round::before { width: 9px; height: 9px; border-radius: 50%; }
.soft { --c: var(--soft); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); }
.c3 { --c: var(--c3); } .c4 { --c: var(--c4); } .c5 { --c: var(--c5); }
.plot { position: relative; height: 250px; margin: 0 14px 26px 50px; touch-action: pan-y; }
.low .plot { height: 130px; }
.chart .note { margin: 4px 0 14px; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot path { fill: none; stroke: var(--c); vector-effect: non-scaling-stroke; stroke-linecap: round;
  stroke-linejoin: round; }
.plot .grid { stroke: var(--faint); stroke-width: 1px; }
.plot .line { stroke-width: 2px; }
.plot .raw { stroke-width: 1px; opacity: .34; }
.plot .dots { stroke-width: 7px; }
.plot .dashed { stroke-dasharray: 5 4; }
.plot .dots.dashed { stroke-dasharray: none; }
.plot span { position: absolute; font-size: 11.5px; line-height: 1; color: var(--soft); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.plot .whisker { stroke-width: 1.5px; opacity: .6; }
.plot .reference { stroke-width: 6px; opacity: .6; }
.plot .own { stroke-width: 12px; }
.plot .way { stroke-width: 1px; opacity: .5; }
.plot .earlier { stroke-width: 6px; opacity: .6; }
.plot.titled { margin-bottom: 46px; }
.plot .below { top: 100%; left: 50%; margin-top: 29px; transform: translateX(-50%); max-width: 100%; overflow: hidden;
  text-overflow: ellipsis; line-height: 1.3; }
.plot .y { right: 100%; margin-right: 9px; transform: translateY(50%); }
.plot .x { top: 100%; margin-top: 9px; transform: translateX(-50%); }
.hair { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--soft); opacity: .5; pointer-events: none; }
.tip { position: absolute; top: 0; z-index: 1; max-width: 50%; padding: 7px 10px; border: 1px solid var(--faint);
  border-radius: 7px; background: var(--raised); overflow-wrap: anywhere;
  font-size: 12px; line-height: 1.5; pointer-events: none;
  font-variant-numeric: tabular-nums; box-shadow: 0 2px 10px rgb(0 0 0 / .09); }
.tip.left { transform: translateX(-100%); }
.tip p { margin: 0; }
.tip p[class]::before { content: ""; display: inline-block; width: 8px; height: 8px; border-radius: 50%;
  margin-right: 6px; background: var(--c); }
[hidden] { display: none; }

table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { font-weight: 500; text-align: left; }
.results { width: 100%; margin: 16px 0 10px; }
.results th, .results td { padding: 8px 18px 8px 0; border-bottom: 1px solid var(--faint); white-space: nowrap; }
.results thead th { font-size: 12.5px; color: var(--soft); white-space: normal; vertical-align: bottom; }
.results tbody td { width: 15%; min-width: 84px; }
.results td:last-child { width: 1%; color: var(--soft); padding-right: 0; }
.results th small { margin-left: 6px; }
.shifts tbody td:last-child { width: 15%; color: inherit; }
.bar { display: block; height: 4px; border-radius: 2px; background: var(--wash); overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--c0); }
.results .bar { margin-top: 4px; max-width: 110px; }
.config { width: 100%; font: 12.5px/1.5 var(--mono); }
.config th, .config td { padding: 4px 24px 4px 0; border-bottom: 1px solid var(--faint); vertical-align: top; }
.config th { color: var(--soft); font-weight: 400; white-space: nowrap; }
.config td { overflow-wrap: anywhere; min-width: 180px; width: 70%; }
summary { cursor: pointer; color: var(--soft); padding: 8px 0; }

.heat { border-collapse: separate; border-spacing: 3px; }
.heat th { font-size: 13px; color: var(--soft); font-weight: 400; padding: 0 10px 0 0; }
.heat thead th { padding: 0 0 4px; text-align: center; vertical-align: bottom; }
.heat td { min-width: 66px; height: 34px; padding: 0; text-align: center; border-radius: 5px; }
.heat .none { background: none; }
.heat .mean { color: var(--soft); }
.heat .v { position: relative; background: var(--wash); overflow: hidden; }
.heat .v::before { content: ""; position: absolute; inset: 0; background: var(--heat);
  opacity: calc(.04 + .92 * var(--v)); }
.heat .v span { position: relative; }
.heat .hi { color: var(--on-heat); }
.heat .held::after, .heat .own::after { content: ""; position: absolute; inset: 0; border: 2px solid var(--c1);
  border-radius: 5px; }
.swatch { display: inline-block; width: 12px; height: 12px; margin: 0 6px 0 12px; border-radius: 3px;
  vertical-align: -1px; background: var(--heat); }
.swatch.held { background: none; border: 2px solid var(--c1); }
.matrix { width: 100%; }
.matrix thead th { width: 8.5%; padding-bottom: 4px; }
.matrix tbody th { overflow-wrap: anywhere; color: var(--ink); font-size: 13.5px; line-height: 1.35; }
.matrix td { min-width: 0; height: 46px; }
.scale { display: flex; align-items: center; gap: 8px; }
.scale > i { width: 110px; height: 8px; border-radius: 4px;
  background: linear-gradient(90deg, color-mix(in srgb, var(--heat) 4%, var(--wash)), var(--heat)); }
.scale .swatch { margin: 0 -2px 0 16px; }

.classes + .classes { margin-top: 36px; }
.bars li { display: grid; grid-template-columns: minmax(0, 11em) minmax(0, 1fr) 3.6em; align-items: center; gap: 10px;
  padding: 2.5px 0; font-size: 13px; break-inside: avoid; }
.bars .name { overflow-wrap: anywhere; line-height: 1.3; }
.bars .value { text-align: right; color: var(--soft); font-variant-numeric: tabular-nums; }
.bars .bar { height: 7px; border-radius: 4px; }
.bars .bar i { border-radius: 4px; }
.suite { margin-bottom: 18px; }
.suite .bars { max-width: 800px; }
.suite .bars li { grid-template-columns: minmax(0, 16em) minmax(0, 1fr) 3.6em; }
.suite .bar { position: relative; overflow: visible; }
.suite .bar b { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; border-radius: 1px;
  background: var(--c1); }
.chance { font-size: 12.5px; color: var(--soft); }
.chance::before { content: ""; display: inline-block; width: 2px; height: 12px; margin-right: 7px; vertical-align: -2px;
  border-radius: 1px; background: var(--c1); }
.many { columns: 2; column-gap: 44px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 44px; }

.query { display: grid; grid-template-columns: minmax(0, 1fr) 500px; gap: 20px; align-items: center; padding: 12px 0; }
.query + .query { border-top: 1px solid var(--faint); }
.caption { margin: 0; font: 17px/1.4 var(--serif); overflow-wrap: anywhere; }
.caption small { display: block; font-family: var(--sans); margin-top: 3px; }
.row { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 14px; }
.row small { display: block; margin-top: 5px; text-align: center; font-variant-numeric: tabular-nums; }
.right img { box-shadow: 0 0 0 2px var(--paper), 0 0 0 4px var(--right); }
.tick { color: var(--right); margin: 0 5px; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 18px 14px; }
.answered h3 { margin: 16px 0 8px; color: var(--c1); }
.answered h3.right { color: var(--right); }
.answered + .answered { margin-top: 36px; }
.examples small { display: block; margin-top: 5px; line-height: 1.35; overflow-wrap: anywhere; }
.examples .parted { grid-column: 1 / -1; display: grid; grid-template-columns: 112px minmax(0, 1fr); gap: 6px 18px; }
.parted + .parted { border-top: 1px solid var(--faint); padding-top: 16px; }
.parted p { margin: 0 0 8px; font: 17px/1.4 var(--serif); overflow-wrap: anywhere; }
.parted ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(64px, 1fr)); gap: 10px; }
.parted ol small { text-align: center; font-size: 11px; }
.answers { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 34px 44px; margin-top: 22px; }
.answer { display: grid; grid-template-columns: 112px minmax(0, 1fr); gap: 18px; align-items: start; }
.under li { grid-template-columns: minmax(0, 1fr) auto; gap: 2px 10px; padding: 0 0 6px; }
.under .bar { grid-column: 1 / -1; height: 5px; }
.under .right .bar i { background: var(--right); }
.under .missed { display: block; color: var(--soft); font-size: 12px; }

@media (max-width: 760px) {
  main { padding: 32px 18px 24px; }
  header, section { margin-bottom: 44px; }
  h1 { font-size: 32px; }
  h2 { font-size: 22px; }
  .summary { font-size: 16.5px; }
  .cards { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .card { max-width: none; padding: 12px 13px; }
  .card:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .card strong { font-size: 24px; }
  .charts, .charts.three, .answers, .pair { grid-template-columns: minmax(0, 1fr); }
  .chart { margin-top: 26px; }
  .plot { height: 210px; margin-right: 10px; }
  .many { columns: 1; }
  .suite .bars li { grid-template-columns: minmax(0, 9em) minmax(0, 1fr) 3.6em; }
  .heat { border-spacing: 2px; }
  .heat td { min-width: 31px; height: 31px; font-size: 12px; }
  .heat th { font-size: 12px; padding-right: 6px; }
  .heat:not(.matrix) thead span { writing-mode: vertical-rl; transform: rotate(180deg); }
  .matrix, .matrix thead, .matrix tbody { display: block; }
  .matrix tr { display: grid; grid-template-columns: repeat(var(--n), minmax(0, 1fr)); gap: 2px; margin-bottom: 8px; }
  .matrix thead { position: sticky; top: 0; z-index: 2; background: var(--paper); padding-top: 4px; }
  .matrix thead td { display: none; }
  .matrix thead th { width: auto; }
  .matrix tbody th { grid-column: 1 / -1; padding: 2px 0; font-size: 13px; }
  .matrix td { height: auto; padding: 8px 0; font-size: 11px; letter-spacing: -.02em; }
  .query { grid-template-columns: minmax(0, 1fr); gap: 10px; padding: 14px 0; }
  .row { gap: 9px; }
  .examples { grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 14px 10px; }
  .answer { grid-template-columns: 84px minmax(0, 1fr); gap: 14px; }
  .results th { white-space: normal; padding-right: 10px; }
  .results th small { display: block; margin-left: 0; }
  .results td { padding-right: 10px; }
  .results tbody td { min-width: 58px; }
  .config th { white-space: normal; overflow-wrap: anywhere; min-width: 110px; }
}
"""

# Shows the nearest values of each curve under the pointer. All text is set as text, never as HTML.
SCRIPT = """
for (const plot of document.querySelectorAll(".plot[data-series]")) {
  const series = JSON.parse(plot.dataset.series), last = Number(plot.dataset.last);
  const hair = plot.appendChild(document.createElement("div")), tip = plot.appendChild(document.createElement("div"));
  hair.className = "hair";
  hair.hidden = tip.hidden = true;
  const nearest = (steps, step) =>
    steps.reduce((best, here, index) => (Math.abs(here - step) < Math.abs(steps[best] - step) ? index : best), 0);
  const line = (text, color) => {
    const p = document.createElement("p");
    p.textContent = text;
    if (color !== undefined) p.className = "c" + color;
    return p;
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const wanted = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * last;
    const dense = series.reduce((most, one) => (one[2].length > most[2].length ? one : most));
    const step = dense[2][nearest(dense[2], wanted)], share = step / last;
    tip.replaceChildren(line("step " + step.toLocaleString("en")), ...series.map(([name, color, steps, values]) => {
      const index = nearest(steps, step);
      const at = steps[index] === step ? "" : " (step " + steps[index].toLocaleString("en") + ")";
      return line(name + " " + values[index] + at, color);
    }));
    tip.className = share > 0.5 ? "tip left" : "tip";
    hair.style.left = tip.style.left = 100 * share + "%";
    hair.hidden = tip.hidden = false;
  });
  plot.addEventListener("pointerleave", () => { hair.hidden = tip.hidden = true; });
}
"""
