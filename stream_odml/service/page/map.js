// The live map: a sample of the gallery in the plane. Items glide to their new place when the model changes.

import { call } from "./api.js";
import { colouring } from "./colours.js";
import { $, count, h, plural } from "./dom.js";
import { Dots } from "./dots.js";
import { about } from "./item.js";
import { begin } from "./layout.js";
import { tile } from "./tiles.js";

const GLIDE_MS = 700;
const NEIGHBOURS = 10;
const FIRST = { epochs: 100, strength: 1 };
const AGAIN = { epochs: 30, strength: 0.3 };
const RETRY_MS = 15_000;
const REST = 5; // times as long as laying out took, until it is done again
const PICKED = 60;
const canvas = $("map");
const dots = new Dots(canvas);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
let plane = { ids: [], classes: [], class: [], attributes: [] };
let fresh = new Set();
let ringed = new Set();
let chosen = -1;
let held = null; // the pointer that is down: {x, y, moved} pans, {line} draws around
let asked = 0;
let placed = new Map(); // where each item was laid out last
let laid = ""; // what was served then
let worker = null;
let restUntil = 0;
let glides = 0;
let waits = 0; // the timer of a refresh that is put off
let pending = false;

export function start() {
  new ResizeObserver(draw).observe(canvas);
  touch();
  dark.addEventListener("change", paint);
  canvas.addEventListener("pointerdown", down);
  canvas.addEventListener("pointermove", (event) => (held && event.buttons ? move(event) : choose(dots.nearest(event.offsetX, event.offsetY))));
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", () => { held = null; draw(); });
  canvas.addEventListener("pointerleave", () => choose(-1));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey && dots.view.zoom === 1 && event.deltaY > 0) return; // the page scrolls
    event.preventDefault();
    zoom(1.2 ** -Math.sign(event.deltaY), event.offsetX, event.offsetY);
  }, { passive: false });
  $("map-in").addEventListener("click", () => zoom(1.5));
  $("map-out").addEventListener("click", () => zoom(1 / 1.5));
  $("map-all").addEventListener("click", () => zoom(0));
  $("map-lasso").addEventListener("click", (event) => {
    event.currentTarget.setAttribute("aria-pressed", !lassoing());
    touch();
  });
  for (const one of ["map-colour", "map-layout"]) $(one).addEventListener("change", () => load().catch(() => paint()));
  $("picked-close").addEventListener("click", () => { $("picked").hidden = true; canvas.focus(); });
  canvas.addEventListener("keydown", key);
  canvas.addEventListener("blur", () => choose(-1));
}

/** Ask for the items anew; soon, where laying them out has just taken long, unless someone has asked for it. */
export async function refresh() {
  clearTimeout(waits);
  const rest = worker ? GLIDE_MS : restUntil - performance.now();
  if (rest > 0) waits = setTimeout(() => refresh().catch(() => {}), rest);
  else await load();
}

async function load() {
  const by = $("map-colour").value, near = $("map-layout").value === "near", mine = ++asked;
  const colour = { ...(by === "error" && { errors: true }), ...(by.startsWith("=") && { attribute: by.slice(1) }) };
  if (!near) placed = new Map();
  // Neighbours are found among all pairs of items: until then, and where that takes too long, the plane is shown.
  if (!placed.size && await see(colour, mine)) layOut(null);
  if (!near || mine !== asked) return;
  const began = performance.now();
  try {
    if (!await see({ ...colour, neighbours: NEIGHBOURS }, mine)) return;
  } catch (error) {
    if (placed.size) throw error;
    waits = setTimeout(() => refresh().catch(() => {}), RETRY_MS);
    return;
  }
  const state = `${plane.version} ${plane.sequence}`;
  if (placed.size && state === laid) return; // another colour of the same items
  layOut({ x: dots.toX.slice(), y: dots.toY.slice(), near: Int32Array.from(plane.neighbours.flat()), ...(placed.size ? AGAIN : FIRST) }, state, began);
}

/** Ask for the items and glide to them; false where another colour or layout has been asked for meanwhile. */
async function see(query, mine) {
  const seen = await call(`/v1/projection?${new URLSearchParams(query)}`);
  if (mine !== asked) return false;
  choose(-1);
  plane = seen;
  choices();
  $("map-empty").hidden = plane.ids.length > 0;
  canvas.setAttribute("aria-label", `Map of ${count(plane.ids.length)} items of ${plural(plane.classes.length, "class")}; arrow keys go through the classes, Enter opens an item, space shows a class, plus and minus zoom`);
  glide(seen.neighbours ? begin({ ...seen, near: seen.neighbours.flat() }, placed) : seen);
  return true;
}

/** Have a worker bring similar items together, and glide there; nothing to lay out ends one that is at work. */
function layOut(task, state, began) {
  worker?.terminate();
  worker = null;
  canvas.dataset.layout = "plane";
  if (!task?.near.length) return;
  const { ids } = plane, mine = new Worker("/page/placing.js", { type: "module" });
  worker = mine;
  mine.onmessage = ({ data: { x, y } }) => {
    mine.terminate();
    worker = null;
    restUntil = performance.now() + REST * (performance.now() - began);
    placed = new Map(ids.map((id, i) => [id, [x[i], y[i]]]));
    laid = state;
    canvas.dataset.layout = "near";
    glide({ x, y });
  };
  mine.onerror = () => { worker = null; }; // principal components stay
  mine.postMessage(task);
}

function glide({ x, y }) {
  dots.set(plane.ids, x, y, dots.places());
  paint();
  const began = performance.now(), mine = ++glides;
  const step = () => {
    if (mine !== glides) return;
    const t = still.matches ? 1 : Math.min(1, (performance.now() - began) / GLIDE_MS);
    dots.part = 1 - (1 - t) ** 3;
    now();
    if (t < 1) requestAnimationFrame(step);
  };
  step();
}

/** Offer what the items can be coloured by. */
function choices() {
  const select = $("map-colour");
  const there = [...select.options].filter((one) => one.value.startsWith("=")).map((one) => one.value.slice(1));
  const wanted = plane.attributes ?? [];
  if (there.join("\n") === wanted.join("\n")) return;
  const value = select.value;
  for (const one of [...select.options]) if (one.value.startsWith("=")) one.remove();
  select.append(...wanted.map((name) => h("option", { value: `=${name}` }, name)));
  select.value = value;
  if (select.value !== value) select.value = "new";
}

/** Classes to paint as new. */
export function paintNew(names) { fresh = new Set(names); paint(); }

/** Items to ring as neighbours of the last question. */
export function ring(ids) { ringed = new Set(ids); draw(); }

function paint() {
  const { code, palette, legend } = colouring($("map-colour").value, plane, fresh, dark.matches);
  dots.paint(code, palette);
  $("map-legend").replaceChildren(...legend.map(([colour, words]) => {
    const mark = h("i", { class: "key" });
    mark.style.background = colour;
    return h("span", {}, mark, words);
  }), h("span", {}, h("i", { class: "key key-hit" }), "neighbour"));
  draw();
}

/** A finger scrolls the page past the whole map, and moves in a part of it, or draws. */
function touch() {
  canvas.style.touchAction = dots.view.zoom > 1 || lassoing() ? "none" : "pan-y";
}

const lassoing = () => $("map-lasso").getAttribute("aria-pressed") === "true";

/** Draw before the next frame, however often this is asked for until then. */
function draw() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; now(); });
}

function now() {
  const radius = dots.n > 4000 ? 1.75 : dots.n > 600 ? 2 : 2.75;
  const pen = dots.draw(radius, chosen >= 0);
  if (chosen >= 0) {
    for (let i = 0; i < dots.n; i += 1) if (plane.class[i] === plane.class[chosen]) dots.stamp(pen, i, radius + 1.5);
  }
  const style = getComputedStyle(document.documentElement);
  pen.strokeStyle = style.getPropertyValue("--known").trim();
  pen.lineWidth = 1.75;
  if (ringed.size) {
    plane.ids.forEach((id, i) => {
      if (!ringed.has(id)) return;
      pen.beginPath();
      pen.arc(...dots.at(i), radius + 4, 0, 2 * Math.PI);
      pen.stroke();
    });
  }
  if (held?.line) {
    pen.beginPath();
    held.line.forEach(([x, y]) => pen.lineTo(x, y));
    pen.stroke();
  }
}

function zoom(factor, x, y) {
  dots.zoom(factor, x, y);
  touch();
  choose(-1);
  draw();
}

function down(event) {
  const { offsetX: x, offsetY: y } = event;
  const draws = event.shiftKey || lassoing();
  held = draws ? { line: [[x, y]] } : { x, y, moved: false };
  canvas.setPointerCapture(event.pointerId);
}

function move({ offsetX: x, offsetY: y }) {
  if (held.line) {
    held.line.push([x, y]);
    return draw();
  }
  if (!held.moved && Math.hypot(x - held.x, y - held.y) < 4) return;
  dots.pan(x - held.x, y - held.y);
  held = { x, y, moved: true };
  choose(-1);
  draw();
}

function up(event) {
  const was = held;
  held = null;
  if (was?.line) {
    if (was.line.length > 2) pick(dots.inside(was.line));
    return draw();
  }
  const i = dots.nearest(event.offsetX, event.offsetY);
  if (was && !was.moved && i >= 0) about(plane.ids[i]);
}

function key(event) {
  if (event.key === "Enter" && chosen >= 0) {
    event.preventDefault(); // else the same key presses the button that the dialog opens with
    return about(plane.ids[chosen]);
  }
  const factor = { "+": 1.5, "-": 1 / 1.5, 0: 0 }[event.key];
  if (factor !== undefined) return zoom(factor);
  if (event.key === " " && chosen >= 0) {
    event.preventDefault();
    const of = plane.class[chosen];
    return pick([...plane.class.keys()].filter((i) => plane.class[i] === of));
  }
  const along = { ArrowRight: [1, 0], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowUp: [0, -1] }[event.key];
  if (!along || !dots.n) return;
  event.preventDefault();
  if (event.shiftKey) {
    dots.pan(-40 * along[0], -40 * along[1]);
    return draw();
  }
  const [step, many] = [along[0] + along[1], plane.classes.length];
  const next = chosen < 0 ? (step > 0 ? 0 : many - 1) : (plane.class[chosen] + step + many) % many;
  choose(plane.class.indexOf(next));
}

function choose(i) {
  if (i === chosen) return;
  chosen = i;
  const tip = $("map-tip");
  tip.hidden = i < 0;
  if (i >= 0) {
    const [x, y] = dots.at(i);
    const value = plane.values?.[plane.value[i]];
    tip.textContent = plane.classes[plane.class[i]] + (value === undefined ? "" : ` · ${value}`);
    tip.style.left = `${Math.min(Math.max(x, 40), canvas.clientWidth - 40)}px`;
    tip.style.top = `${Math.max(y, 34)}px`;
  }
  draw();
}

/** Show the images of some items: of all where they are few, else some of each part of them. */
function pick(some) {
  if (!some.length) return;
  const every = Math.max(1, some.length / PICKED);
  const shown = Array.from({ length: Math.min(PICKED, some.length) }, (_, n) => some[Math.floor(n * every)]);
  const classes = new Set(some.map((i) => plane.class[i]));
  const rest = shown.length < some.length ? `, ${count(shown.length)} of them here` : "";
  $("picked-title").textContent = `${plural(some.length, "item")} of ${plural(classes.size, "class")}${rest}`;
  $("picked-items").replaceChildren(...shown.map((i) => tile(plane.ids[i], plane.classes[plane.class[i]])));
  $("picked").hidden = false;
  $("picked-title").focus();
}
