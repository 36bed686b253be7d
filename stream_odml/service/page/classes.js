// Classes, newest first, and which of them are new to whoever looks.

import { call } from "./api.js";
import { $, age, count, h, plural } from "./dom.js";
import { paintNew } from "./map.js";
import { tile } from "./tiles.js";

const SHOWN = 60;
const SEEN = "stream_odml.seen";
const visit = localStorage.getItem(SEEN); // when the page was last left
let drawn = "";

export function start() {
  const since = $("since");
  since.addEventListener("change", refresh);
  let typing;
  $("class-named").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(refresh, 200); });
  addEventListener("pagehide", () => localStorage.setItem(SEEN, new Date().toISOString()));
}

/** Only as many rows are asked for as are shown; the map needs the new ones' names, whose number is bounded too. */
export async function refresh() {
  const part = $("class-named").value.trim();
  const named = part ? `&named=${encodeURIComponent(part)}` : "";
  const [recent, every] = await Promise.all([call(`/v1/classes?limit=1000&${newOnes()}`), call(`/v1/classes?limit=${SHOWN}${named}`)]);
  const names = new Set(recent.classes.map((row) => row.name));
  paintNew(names);
  $("classes-note").textContent = part
    ? `${plural(every.total, "class")} named so` : `${count(recent.total)} new of ${plural(every.total, "class")}`;
  const rows = every.classes;
  const key = JSON.stringify([rows.map((row) => [row.name, row.count, row.learnt]), [...names]]);
  if (key === drawn) return; // pictures are not asked for again when nothing changed
  drawn = key;
  $("classes").replaceChildren(...rows.map((row) => tile(row.sample, row.name, {
    fresh: names.has(row.name),
    notes: [row.learnt ? `${count(row.count)} · ${age(row.first_seen)}`
      : h("span", { class: "new-mark", title: "searchable, not learnt yet" }, `${count(row.count)} · ${age(row.first_seen)}`)],
    more: `${plural(row.count, "image")}, ${row.learnt ? "learnt" : "not learnt yet"}`,
  })));
}

function newOnes() {
  const value = $("since").value;
  if (value === "unlearnt") return "learnt=false";
  const start = value === "visit" && visit ? visit : new Date(Date.now() - (Number(value) || 600) * 1000).toISOString();
  return `since=${encodeURIComponent(start)}`;
}
