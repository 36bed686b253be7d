// One item: its picture, where it came from, its neighbours; saying its class, and erasing it.

import { call, picture, show } from "./api.js";
import { $, ago, figure, h, version } from "./dom.js";
import { search } from "./query.js";

const NEIGHBOURS = 9;
let shown = null;

export function start() {
  $("item-search").addEventListener("click", async () => {
    const blob = await picture(shown);
    $("item").close();
    if (blob) search(blob);
  });
  $("item-label").addEventListener("click", label);
  $("item-class").addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); label(); }
  });
  $("item-erase").addEventListener("click", erase);
}

/** Open what is known of an item. */
export async function about(id) {
  shown = id;
  $("item-title").textContent = id;
  for (const part of ["item-facts", "item-near"]) $(part).replaceChildren();
  say("…");
  calm();
  if (!$("item").open) $("item").showModal();
  try {
    const item = await call(path(id));
    if (shown !== id) return;
    $("item-title").textContent = item.class;
    $("item-class").value = item.class;
    $("item-facts").replaceChildren(...facts(item).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    const pic = $("item-pic");
    pic.hidden = false;
    show(pic, id, () => { pic.hidden = true; });
    say("");
    await near(id);
  } catch (error) {
    say(error.message);
  }
}

function facts(item) {
  const known = Object.entries(item.attributes).sort();
  return [["id", item.id], ["shard", `${item.shard}, row ${item.row}`], ["vector by", version(item.version)],
    ...(item.time ? [["time", ago(item.time)]] : []), ...known];
}

async function near(id) {
  const blob = await picture(id);
  if (!blob) return;
  const answer = await call(`/v1/search?k=${NEIGHBOURS + 1}`, { method: "POST", body: blob, headers: { "Content-Type": "application/octet-stream" } });
  if (shown !== id) return;
  const others = answer.hits.filter((hit) => hit.id !== id).slice(0, NEIGHBOURS);
  $("item-near").replaceChildren(...others.map((hit) => {
    const img = h("img", { alt: "" });
    const pic = h("span", { class: "pic" }, img);
    show(img, hit.id, () => pic.replaceChildren(hit.class.slice(0, 1).toUpperCase()));
    return h("li", {}, h("button", { type: "button", class: "tile", onclick: () => about(hit.id) },
      pic, h("span", { class: "name" }, hit.class), h("span", { class: "note" }, figure(hit.score)), h("span", { class: "sr" }, "; about it")));
  }));
}

async function label() {
  const name = $("item-class").value.trim();
  if (!name) return say("write the class first");
  try {
    await call(path(shown), { method: "PATCH", body: JSON.stringify({ class: name }), headers: { "Content-Type": "application/json" } });
    say(`landed: it is ${name} within seconds, and learnt with its task`);
  } catch (error) {
    say(error.message);
  }
}

async function erase() {
  const button = $("item-erase");
  if (button.dataset.sure !== "yes") {
    button.dataset.sure = "yes";
    button.textContent = "Yes, erase it for good";
    return say("its vector and pictures are deleted, and what it added to the statistics; this cannot be undone");
  }
  calm();
  try {
    const answer = await call(path(shown), { method: "DELETE" });
    say(`erased: ${answer.items} item hidden now, deleted within a minute`);
  } catch (error) {
    say(error.message);
  }
}

function calm() {
  const button = $("item-erase");
  delete button.dataset.sure;
  button.textContent = "Erase…";
}

function say(text) { $("item-said").textContent = text; }

const path = (id) => `/v1/items/${encodeURIComponent(id)}`;
