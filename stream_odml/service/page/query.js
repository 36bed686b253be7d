// Search: drop, paste or choose an image; neighbours with class, score and version.

import { call } from "./api.js";
import { $, figure, h, version } from "./dom.js";
import { ring } from "./map.js";
import { tile } from "./tiles.js";

let last = null;
let turn = 0;

export function start() {
  const drop = $("drop");
  $("file").addEventListener("change", (event) => event.target.files[0] && search(event.target.files[0]));
  drop.addEventListener("click", () => $("file").click());
  $("asked").addEventListener("error", () => { $("asked").hidden = true; }); // what is no image has no picture
  for (const name of ["by-class", "filter"]) $(name).addEventListener("change", () => last && search(last));
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const files = [...event.dataTransfer.files];
    const file = files.find((one) => one.type.startsWith("image/"));
    if (file) search(file);
    else if (files.length) refuse(files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (file) search(file);
  });
}

export async function search(image) {
  last = image;
  const mine = ++turn;
  const asked = $("asked");
  URL.revokeObjectURL(asked.src);
  asked.src = URL.createObjectURL(image);
  asked.alt = "the image asked about";
  asked.hidden = false;
  const began = performance.now();
  try {
    const grouped = $("by-class").checked;
    const answer = await call(`/v1/search?k=12${grouped ? "&group_by=class" : ""}${within()}`, {
      method: "POST", body: image, headers: { "Content-Type": "application/octet-stream" },
    });
    if (mine !== turn) return; // a later question has been asked
    answered(answer, grouped ? answer.groups.map((group) => group.hits[0]) : answer.hits, performance.now() - began);
  } catch (error) {
    if (mine === turn) failed(error);
  }
}

/** What the filter says, as the service takes it: "oak" is a class, "shelf=7" an attribute. */
function within() {
  const text = $("filter").value.trim();
  if (!text) return "";
  const [name, ...rest] = text.split("=");
  return rest.length ? `&attribute=${encodeURIComponent(`${name.trim()}:${rest.join("=").trim()}`)}` : `&class=${encodeURIComponent(text)}`;
}

function answered(answer, hits, milliseconds) {
  const line = h("p", { class: "quiet" }, "answered by ", version(answer.version), ` in ${Math.round(milliseconds)} ms`);
  const best = hits[0] ? h("strong", {}, hits[0].class) : h("strong", {}, "nothing yet");
  $("answered").replaceChildren(best, line);
  $("hits").replaceChildren(...hits.map((hit, i) => tile(hit.id, hit.class, {
    score: hit.score,
    notes: [figure(hit.score), h("code", { title: `vector made by ${hit.version}` }, hit.version.split("-")[0])],
    more: `neighbour ${i + 1}`,
  })));
  ring(hits.map((hit) => hit.id));
}

function refuse(file) {
  turn += 1; // an answer that is still on its way belongs to no picture any more
  last = null;
  $("asked").hidden = true;
  failed({ message: `${file.name} is no image` });
}

function failed(error) {
  $("hits").replaceChildren();
  ring([]);
  $("answered").replaceChildren(h("p", { class: "error", role: "alert" }, error.message || "the service does not answer"));
}
