// Line charts in SVG, drawn at their real size so that text stays text-sized on a phone.

import { figure, s } from "./dom.js";

const [TOP, RIGHT, BOTTOM, LEFT] = [14, 92, 22, 34];

/** Draw `series` [{name, kind, values: (number|null)[]}] over `labels`, from zero or from the least value; nothing to draw: `empty` says why. */
export function lines(box, labels, series, zero, empty) {
  const given = series.filter((one) => one.values.some((y) => y !== null));
  const render = () => box.replaceChildren(given.length ? chart(box, labels, given, zero) : message(box, empty));
  box.observer?.disconnect();
  box.observer = new ResizeObserver(render);
  box.observer.observe(box);
}

function message(box, text) {
  return s("svg", { role: "img", "aria-label": text }, s("text", { x: 0, y: box.clientHeight / 2 }, text));
}

function chart(box, labels, series, zero) {
  const [width, height] = [box.clientWidth, box.clientHeight];
  const [low, high, step] = range(series.flatMap((one) => one.values.filter((y) => y !== null)), zero);
  const px = (i) => LEFT + (labels.length > 1 ? (i / (labels.length - 1)) * (width - LEFT - RIGHT) : 0);
  const py = (y) => TOP + (1 - (y - low) / (high - low)) * (height - TOP - BOTTOM);
  const svg = s("svg", { role: "img", "aria-label": describe(series) });
  for (let y = low; y <= high + step / 2; y += step) {
    svg.append(s("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: py(y), y2: py(y) }),
      s("text", { x: LEFT - 8, y: py(y) + 4, "text-anchor": "end" }, y.toFixed(step < 0.1 ? 2 : 1)));
  }
  const every = Math.ceil(labels.length / Math.max(1, (width - LEFT - RIGHT) / 52));
  labels.forEach((label, i) => {
    if (i % every === 0) svg.append(s("text", { x: px(i), y: height - 5, "text-anchor": "middle" }, label));
  });
  for (const one of series) svg.append(...line(one, px, py));
  svg.append(...endLabels(series, px, py));
  hover(svg, labels, series, px, height);
  return svg;
}

function line(one, px, py) {
  const marks = one.values.map((y, i) => (y === null ? null : [px(i), py(y)]));
  const path = marks.reduce((d, mark, i) => (mark ? `${d}${d && marks[i - 1] ? "L" : "M"}${mark[0]} ${mark[1]}` : d), "");
  const spots = marks.filter(Boolean).map(([x, y]) => s("circle", { class: `spot s-${one.kind}`, cx: x, cy: y, r: 2.5 }));
  return [s("path", { class: `line s-${one.kind}`, d: path }), ...spots];
}

/** Names at the ends of their lines, pushed apart where they would overlap. */
function endLabels(series, px, py) {
  const ends = series.map((one) => {
    const i = one.values.findLastIndex((y) => y !== null);
    return { one, x: px(i) + 9, y: py(one.values[i]) };
  }).sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => { if (i) end.y = Math.max(end.y, ends[i - 1].y + 14); });
  return ends.map(({ one, x, y }) => s("text", { class: `label s-${one.kind}`, x, y: y + 4 }, one.name));
}

function hover(svg, labels, series, px, height) {
  const guide = s("line", { class: "guide", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
  const note = s("text", { y: 9, visibility: "hidden" });
  svg.append(guide, note);
  svg.addEventListener("pointermove", (event) => {
    const x = event.clientX - svg.getBoundingClientRect().left;
    const i = labels.reduce((best, _, j) => (Math.abs(px(j) - x) < Math.abs(px(best) - x) ? j : best), 0);
    const values = series.filter((one) => one.values[i] !== null).map((one) => `${one.name} ${figure(one.values[i])}`);
    for (const [name, value] of [["x1", px(i)], ["x2", px(i)], ["visibility", "visible"]]) guide.setAttribute(name, value);
    const late = i > labels.length / 2;
    note.setAttribute("x", px(i));
    note.setAttribute("text-anchor", late ? "end" : "start");
    note.setAttribute("visibility", "visible");
    note.textContent = `${labels[i]}  ${values.join("  ")}`;
  });
  svg.addEventListener("pointerleave", () => [guide, note].forEach((one) => one.setAttribute("visibility", "hidden")));
}

function range(values, zero) {
  let [least, most] = [Math.min(...values), Math.max(...values)];
  if (zero) [least, most] = [Math.min(least, 0), Math.max(most, 0.05)];
  if (most - least < 0.05) least = most - 0.05;
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5].find((one) => (most - least) / one <= 5) ?? 1;
  return [Math.floor(least / step + 1e-9) * step, Math.ceil(most / step - 1e-9) * step, step];
}

function describe(series) {
  return series.map((one) => `${one.name}: ${one.values.map((y) => figure(y)).join(", ")}`).join("; ");
}
