// One tile: a picture, a name, a line below. Clicking it searches with that picture; its small button says all of it.

import { picture, show } from "./api.js";
import { h } from "./dom.js";
import { about } from "./item.js";
import { search } from "./query.js";

export function tile(id, name, { fresh = false, score = null, notes = [], more = "" } = {}) {
  const img = h("img", { alt: "", loading: "lazy" });
  const pic = h("span", { class: "pic" }, img);
  show(img, id, () => pic.replaceChildren(name.slice(0, 1).toUpperCase()));
  const again = async () => {
    const blob = await picture(id);
    if (blob) search(blob);
  };
  const bar = h("i");
  if (score !== null) bar.style.width = `${Math.max(0, Math.min(1, score)) * 100}%`;
  return h("li", {}, h("button", { class: `tile${fresh ? " new" : ""}`, onclick: again, title: id },
    pic,
    h("span", { class: "name" }, name),
    score === null ? null : h("span", { class: "bar" }, bar),
    h("span", { class: "note" }, ...notes.map((note) => (typeof note === "string" ? h("span", {}, note) : note))),
    h("span", { class: "sr" }, `${more ? `, ${more}` : ""}; search with it`)),
  h("button", { class: "more", onclick: () => about(id), "aria-label": `About ${name}, ${id}` }, "i"));
}
