"""A figure as SVG, and as one page for a browser that needs no network: the SVG with what a pointer finds on it.

Names reach the page as text of elements and as JSON, never as markup, and the script writes them with
`textContent`.
"""

import json
import re
from collections.abc import Sequence
from html import escape
from io import StringIO
from typing import Any

from matplotlib.figure import Figure

from kinbase.plotting.marks import SOFT, Grid, Spot

POINTS = 72.0
"""Of matplotlib's SVG, an inch."""

# A browser asks nobody for anything, whatever a name might say.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ margin: 1rem; font: 14px/1.4 system-ui, sans-serif; color: #1b2430; background: #fff; }}
#bar {{ margin: 0 0 .5rem .5rem; color: {soft}; }}
#bar label {{ margin-right: 1rem; }}
#bar input {{ font: inherit; width: 16rem; padding: .1rem .4rem; }}
svg {{ height: auto; max-width: none; }}
svg.fit {{ max-width: 100%; }}
.spot {{ fill: transparent; stroke: transparent; }}
path.spot {{ fill: none; }}
.spot:hover, .spot.found {{ stroke: #d55e00; stroke-width: 2; }}
path.spot:hover {{ stroke-opacity: .35; stroke-width: 6; }}
#cell, #row, #column {{ fill: none; stroke: #d55e00; stroke-width: 1.5; pointer-events: none; }}
#row, #column {{ stroke-width: .6; }}
#tip {{ position: fixed; display: none; max-width: 34rem; padding: .35rem .6rem; background: #1b2430; color: #f3f6fa;
  border-radius: 4px; pointer-events: none; overflow-wrap: anywhere; white-space: pre-line; font-size: 13px; z-index: 1; }}
#tip div:first-child {{ font-weight: 600; }}
</style>
</head>
<body>
<div id="bar"><label>Find <input id="find" type="search" autocomplete="off" placeholder="part of a name"></label>
<label><input id="fit" type="checkbox" style="width: auto"> fit to the window</label> <span id="count"></span></div>
{svg}
<div id="tip" role="status"></div>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const svg = document.querySelector("svg"), tip = document.getElementById("tip"), count = document.getElementById("count");
const ns = "http://www.w3.org/2000/svg";
function make(name, attributes) {
  const element = document.createElementNS(ns, name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  svg.appendChild(element);
  return element;
}
function tell(event, lines) {
  tip.replaceChildren(...lines.map(line => {
    const div = document.createElement("div");
    div.textContent = line;
    return div;
  }));
  tip.style.display = lines.length ? "block" : "none";
  const right = event.clientX + 14 + tip.offsetWidth > innerWidth, low = event.clientY + 14 + tip.offsetHeight > innerHeight;
  tip.style.left = Math.max(0, right ? event.clientX - tip.offsetWidth - 10 : event.clientX + 14) + "px";
  tip.style.top = Math.max(0, low ? event.clientY - tip.offsetHeight - 10 : event.clientY + 14) + "px";
}
function at(event) {
  const point = new DOMPoint(event.clientX, event.clientY);
  return point.matrixTransform(svg.getScreenCTM().inverse());
}
const spots = data.spots.map(spot => {
  const shape = spot.d ? make("path", {d: spot.d, "stroke-width": spot.r}) : make("circle", {cx: spot.x, cy: spot.y, r: spot.r});
  shape.classList.add("spot");
  shape.style.pointerEvents = spot.d ? "stroke" : "all";
  shape.addEventListener("mousemove", event => { tell(event, spot.lines); event.stopPropagation(); });
  shape.addEventListener("mouseleave", event => tell(event, []));
  return {shape, text: spot.d ? "" : spot.lines[0].toLowerCase()};
});
const grid = data.grid;
let cell, row, column;
if (grid) {
  const n = grid.names.length, w = grid.width / n, h = grid.height / n;
  row = make("rect", {id: "row", x: grid.x, width: grid.width, height: h, visibility: "hidden"});
  column = make("rect", {id: "column", y: grid.y, width: w, height: grid.height, visibility: "hidden"});
  cell = make("rect", {id: "cell", width: w, height: h, visibility: "hidden"});
  const show = visible => [cell, row, column].forEach(one => one.setAttribute("visibility", visible ? "visible" : "hidden"));
  svg.addEventListener("mousemove", event => {
    const p = at(event), j = Math.floor((p.x - grid.x) / w), i = Math.floor((p.y - grid.y) / h);
    if (i < 0 || j < 0 || i >= n || j >= n) { show(false); tell(event, []); return; }
    cell.setAttribute("x", grid.x + j * w); cell.setAttribute("y", grid.y + i * h);
    row.setAttribute("y", grid.y + i * h); column.setAttribute("x", grid.x + j * w);
    show(true);
    const text = grid.texts[Math.min(i, j) + "," + Math.max(i, j)];
    tell(event, i === j ? [grid.names[i]] : [grid.names[i] + "\\n" + grid.names[j], text || "not measured"]);
  });
  svg.addEventListener("mouseleave", event => { show(false); tell(event, []); });
}
const marks = [];
document.getElementById("find").addEventListener("input", event => {
  const wanted = event.target.value.trim().toLowerCase();
  let found = 0;
  for (const spot of spots) {
    const hit = wanted !== "" && spot.text.includes(wanted);
    spot.shape.classList.toggle("found", hit);
    found += hit;
  }
  while (marks.length) marks.pop().remove();
  if (grid && wanted) grid.names.forEach((name, i) => {
    if (!name.toLowerCase().includes(wanted)) return;
    const h = grid.height / grid.names.length;
    const mark = make("rect", {x: grid.x, y: grid.y + i * h, width: grid.width, height: h, class: "spot found"});
    mark.style.pointerEvents = "none";
    marks.push(mark);
    found += 1;
  });
  count.textContent = wanted ? found + " found" : "";
});
document.getElementById("fit").addEventListener("change", event => svg.classList.toggle("fit", event.target.checked));
"""


def svg(figure: Figure) -> str:
    """The figure as one SVG document, alike each time it is drawn."""
    out = StringIO()
    # Without a document type: its address is of a site that readers of SVG ask for nothing.
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return re.sub(r"<!DOCTYPE[^>]*>\s*", "", out.getvalue(), count=1)


def page(figure: Figure, title: str, spots: Sequence[Spot], grid: Grid | None) -> str:
    """The figure as a page of its own, which tells of the spots and the cells of the grid."""
    drawn = svg(figure)
    return PAGE.format(
        title=escape(title),
        soft=SOFT,
        policy=POLICY,
        svg=drawn[drawn.index("<svg") :],
        data=_json(_places(figure, spots, grid)),
        script=SCRIPT,
    )


def _json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _places(figure: Figure, spots: Sequence[Spot], grid: Grid | None) -> dict[str, Any]:
    """Where on the SVG the spots are: in points from its upper left corner."""
    height = float(figure.get_size_inches()[1]) * POINTS
    dpi, figure.dpi = figure.dpi, POINTS
    try:
        figure.draw_without_rendering()
        return {
            "spots": [_spot(spot, height) for spot in spots],
            "grid": _grid(grid, height) if grid else None,
        }
    finally:
        figure.dpi = dpi


def _spot(spot: Spot, height: float) -> dict[str, Any]:
    points = spot.axes.transData.transform(list(zip(spot.x, spot.y, strict=True)))
    told = {"r": spot.radius, "lines": list(spot.lines)}
    if len(points) == 1:
        return {"x": round(float(points[0][0]), 2), "y": round(height - float(points[0][1]), 2)} | told
    return {"d": "M" + "L".join(f"{x:.1f} {height - y:.1f}" for x, y in points)} | told


def _grid(grid: Grid, height: float) -> dict[str, Any]:
    number = len(grid.names)
    (left, top), (right, bottom) = grid.axes.transData.transform([(-0.5, -0.5), (number - 0.5, number - 0.5)])
    return {
        "x": float(left), "y": height - float(top), "width": float(right - left), "height": float(top - bottom),
        "names": list(grid.names),
        "texts": {f"{min(i, j)},{max(i, j)}": text for (i, j), text in grid.texts.items()},
    }  # fmt: skip
