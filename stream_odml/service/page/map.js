// The live map: a sample of the gallery in the plane. Items glide to their new place when the model changes.

import { call } from "./api.js";
import { $ } from "./dom.js";
import { about } from "./item.js";

const GLIDE_MS = 700;
const canvas = $("map");
const still = matchMedia("(prefers-reduced-motion: reduce)");
let points = []; // {id, name, x, y, fromX, fromY}
let fresh = new Set();
let ringed = new Set();
let chosen = null;
let began = 0;
let view = { zoom: 1, x: 0, y: 0 }; // centre of what is seen, in the plane
let dragged = null;

export function start() {
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  canvas.addEventListener("pointerdown", (event) => { dragged = { x: event.offsetX, y: event.offsetY, moved: false }; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => (dragged && event.buttons ? drag(event) : choose(nearest(event))));
  canvas.addEventListener("pointerup", (event) => {
    const point = nearest(event);
    if (dragged && !dragged.moved && point) about(point.id);
    dragged = null;
  });
  canvas.addEventListener("pointerleave", () => choose(null));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey && view.zoom === 1 && event.deltaY > 0) return; // the page scrolls
    event.preventDefault();
    zoom(1.2 ** -Math.sign(event.deltaY), event.offsetX, event.offsetY);
  }, { passive: false });
  $("map-in").addEventListener("click", () => zoom(1.5));
  $("map-out").addEventListener("click", () => zoom(1 / 1.5));
  $("map-all").addEventListener("click", () => zoom(0));
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && chosen) return about(chosen.id);
    const factor = { "+": 1.5, "-": 1 / 1.5, 0: 0 }[event.key];
    if (factor !== undefined) return zoom(factor);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !points.length) return;
    event.preventDefault();
    const names = [...new Set(points.map((point) => point.name))];
    const next = (names.indexOf(chosen?.name) + step + names.length) % names.length;
    choose(points.find((point) => point.name === names[next]));
  });
  canvas.addEventListener("blur", () => choose(null));
}

export async function refresh() {
  const plane = await call("/v1/projection");
  const before = new Map(points.map((point) => [point.id, place(point)]));
  points = plane.ids.map((id, i) => {
    const [fromX, fromY] = before.get(id) ?? [plane.x[i], plane.y[i]];
    return { id, name: plane.classes[plane.class[i]], x: plane.x[i], y: plane.y[i], fromX, fromY };
  });
  $("map-empty").hidden = points.length > 0;
  canvas.setAttribute("aria-label", `Map of ${points.length} items of ${plane.classes.length} classes; arrow keys go through the classes, Enter opens an item, plus and minus zoom`);
  began = performance.now();
  requestAnimationFrame(glide);
}

/** Classes to paint as new. */
export function paintNew(names) { fresh = new Set(names); draw(); }

/** Items to ring as neighbours of the last question. */
export function ring(ids) { ringed = new Set(ids); draw(); }

function glide() {
  draw();
  if (performance.now() - began < GLIDE_MS && !still.matches) requestAnimationFrame(glide);
}

function place(point) {
  const t = still.matches ? 1 : Math.min(1, (performance.now() - began) / GLIDE_MS);
  const ease = 1 - (1 - t) ** 3;
  return [point.fromX + (point.x - point.fromX) * ease, point.fromY + (point.y - point.fromY) * ease];
}

const MARGIN = 16;
const span = () => [(canvas.clientWidth - 2 * MARGIN) / 2, (canvas.clientHeight - 2 * MARGIN) / 2];

function onCanvas(point) {
  const [x, y] = place(point);
  const [width, height] = span();
  return [MARGIN + width * (1 + (x - view.x) * view.zoom), MARGIN + height * (1 - (y - view.y) * view.zoom)];
}

/** Zoom by a factor about a place of the canvas, its middle by default; 0 shows all. */
function zoom(factor, atX = canvas.clientWidth / 2, atY = canvas.clientHeight / 2) {
  const [width, height] = span();
  const [x, y] = [(atX - MARGIN) / width - 1, 1 - (atY - MARGIN) / height];
  const next = factor ? Math.min(40, Math.max(1, view.zoom * factor)) : 1;
  view = next === 1 ? { zoom: 1, x: 0, y: 0 }
    : { zoom: next, x: view.x + x / view.zoom - x / next, y: view.y + y / view.zoom - y / next };
  draw();
}

function drag(event) {
  const [width, height] = span();
  const [dx, dy] = [event.offsetX - dragged.x, event.offsetY - dragged.y];
  if (!dragged.moved && Math.hypot(dx, dy) < 4) return;
  Object.assign(dragged, { x: event.offsetX, y: event.offsetY, moved: true });
  view = { ...view, x: view.x - dx / width / view.zoom, y: view.y + dy / height / view.zoom };
  choose(null);
  draw();
}

function draw() {
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== width * scale || canvas.height !== height * scale) {
    canvas.width = width * scale;
    canvas.height = height * scale;
  }
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  const dots = (some, fill, radius, alpha) => {
    pen.fillStyle = fill;
    pen.globalAlpha = alpha;
    for (const point of some) {
      const [x, y] = onCanvas(point);
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      pen.fill();
    }
  };
  const faint = chosen ? 0.35 : 0.75;
  const radius = points.length > 600 ? 2 : 2.75;
  dots(points.filter((point) => !fresh.has(point.name)), colour("--dots"), radius, faint);
  dots(points.filter((point) => fresh.has(point.name)), colour("--new"), radius + 0.75, chosen ? 0.4 : 0.9);
  if (chosen) dots(points.filter((point) => point.name === chosen.name), fresh.has(chosen.name) ? colour("--new") : colour("--ink"), radius + 1.25, 1);
  pen.globalAlpha = 1;
  pen.strokeStyle = colour("--known");
  pen.lineWidth = 1.75;
  for (const point of points) {
    if (!ringed.has(point.id)) continue;
    const [x, y] = onCanvas(point);
    pen.beginPath();
    pen.arc(x, y, radius + 4, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function nearest(event) {
  let [best, distance] = [null, 18 ** 2];
  for (const point of points) {
    const [x, y] = onCanvas(point);
    const d = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2;
    if (d < distance) [best, distance] = [point, d];
  }
  return best;
}

function choose(point) {
  if (point === chosen) return;
  chosen = point;
  const tip = $("map-tip");
  tip.hidden = point === null;
  if (point) {
    const [x, y] = onCanvas(point);
    tip.textContent = point.name;
    tip.style.left = `${Math.min(Math.max(x, 40), canvas.clientWidth - 40)}px`;
    tip.style.top = `${Math.max(y, 34)}px`;
  }
  draw();
}
