// Elements and words: the few helpers that every part of the page shares.

export const $ = (id) => document.getElementById(id);

/** Build an element: h("p", {class: "quiet"}, "text", child…). Text is always text, never markup. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

const SVG = "http://www.w3.org/2000/svg";
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const count = (n) => Number(n).toLocaleString("en");
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : /(s|x|ch|sh)$/.test(word) ? "es" : "s"}`;
export const figure = (x, digits = 3) => (typeof x === "number" ? x.toFixed(digits) : "–");

/** "12 s", "4 min", "3 h", "2 d" out of seconds. */
export function duration(seconds) {
  const x = Math.max(0, seconds);
  if (x < 10) return `${x.toFixed(1)} s`;
  if (x < 90) return `${Math.round(x)} s`;
  if (x < 5400) return `${Math.round(x / 60)} min`;
  if (x < 129600) return `${Math.round(x / 3600)} h`;
  return `${Math.round(x / 86400)} d`;
}

export const age = (iso) => (iso ? duration((Date.now() - Date.parse(iso)) / 1000) : "–");
export const ago = (iso) => (iso ? `${duration((Date.now() - Date.parse(iso)) / 1000)} ago` : "–");

/** v0012-3fa9c1d2 as v0012-3fa9: a beginning, which every command takes too; the whole id is in the title. */
export function version(id) {
  const [depth, hash = ""] = id.split("-");
  return h("code", { title: id }, hash ? `${depth}-${hash.slice(0, 4)}` : depth);
}
