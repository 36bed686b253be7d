// Version history: curves along the head's path, a table of the whole tree, and going back.

import { call } from "./api.js";
import { lines } from "./charts.js";
import { $, ago, count, figure, h, plural, version } from "./dom.js";
import { refused } from "./work.js";

const recall = (row, split, form = "served") => row.metrics[`recall_at_1/${split}/${form}`] ?? null;
let tree = { head: "", versions: [] };

export async function refresh() {
  tree = await call("/v1/versions");
  const path = lineage(tree);
  const learnt = path.filter((row) => row.parent !== null || recall(row, "union") !== null);
  const labels = learnt.map((row) => row.id.split("-")[0]);
  const of = (name, kind, read) => ({ name, kind, values: learnt.map(read) });
  lines($("recall"), labels, [
    of("served", "served", (row) => recall(row, "union")),
    of("re-extracted", "reextracted", (row) => recall(row, "union", "reextracted")),
    of("old classes", "old", (row) => recall(row, "old")),
    of("new classes", "new", (row) => recall(row, "new")),
  ], false, "No recall yet: it needs held-out images (evaluation.held_out).");
  lines($("forgetting"), labels, [of("forgetting", "forgetting", (row) => row.metrics.forgetting ?? null)],
    true, "Nothing to forget before the second stage.");
  const onPath = new Set(path.map((row) => row.id));
  refused(tree.not_learnt ?? []);
  $("versions").replaceChildren(...tree.versions.toReversed().map((row) => line(row, onPath)));
}

function lineage({ head, versions }) {
  const known = new Map(versions.map((row) => [row.id, row]));
  const path = [];
  for (let row = known.get(head); row; row = known.get(row.parent)) path.unshift(row);
  return path;
}

function line(row, onPath) {
  const head = row.id === tree.head;
  const action = head ? h("span", { class: "badge" }, "served")
    : row.retired ? h("span", { class: "quiet" }, "retired")
    : h("button", { onclick: () => ask(row) }, "Serve", h("span", { class: "sr" }, ` ${row.id}`));
  const mark = head ? "head-row" : onPath.has(row.id) ? "" : "aside";
  return h("tr", { class: mark },
    h("td", {}, row.parent === null ? version(row.id)
      : h("button", { class: "link", onclick: () => compare(row) }, h("span", { class: "sr" }, "What changed in "), version(row.id))), h("td", {}, ago(row.committed)), h("td", { class: "wide" }, row.task ?? "initial model"),
    h("td", { class: "n" }, figure(recall(row, "union"))), h("td", { class: "n wide" }, figure(recall(row, "old"))),
    h("td", { class: "n wide" }, figure(recall(row, "new"))), h("td", { class: "n" }, figure(row.metrics.forgetting)),
    h("td", {}, action));
}

async function ask(row) {
  const dialog = $("rollback");
  $("rollback-to").textContent = row.id;
  $("rollback-error").textContent = "";
  $("rollback-diff").textContent = "";
  dialog.returnValue = "";
  dialog.onclose = () => dialog.returnValue === "go" && serve(row);
  dialog.showModal();
  const diff = await call(`/v1/versions/${encodeURIComponent(tree.head)}/diff/${encodeURIComponent(row.id)}`).catch(() => null);
  if (diff) $("rollback-diff").replaceChildren(...words(diff));
}

function words(diff, from = "here", to = "there") {
  const recalls = diff.metrics["recall_at_1/union/served"];
  const said = [];
  if (recalls) said.push(`Recall@1 ${figure(recalls.to)} ${to}, ${figure(recalls.from)} ${from}, each on the classes known at the time.`);
  for (const [rows, verb] of [[diff.gained, "gain"], [diff.lost, "lose"]]) {
    if (rows.length) said.push(`${plural(rows.length, "class")} ${verb}${rows.length === 1 ? "s" : ""} recall: ${named(rows)}.`);
  }
  if (diff.new_classes.length) said.push(`${plural(diff.new_classes.length, "class")} measured for the first time.`);
  if (diff.gone_classes.length) said.push(`${count(diff.gone_classes.length)} classes were not learnt yet then; they stay searchable.`);
  return said.map((text) => h("p", {}, text));
}

/** The classes that changed most, by name: "oak 0.50 → 0.75, elm 1.00 → 0.50 and 3 more". */
function named(rows, most = 5) {
  const shown = rows.slice(0, most).map((row) => `${row.class} ${figure(row.from, 2)} → ${figure(row.to, 2)}`);
  return shown.join(", ") + (rows.length > most ? ` and ${count(rows.length - most)} more` : "");
}

async function compare(row) {
  const dialog = $("changes");
  $("changes-of").textContent = row.id;
  $("changes-diff").textContent = "…";
  dialog.showModal();
  const path = `/v1/versions/${encodeURIComponent(row.parent)}/diff/${encodeURIComponent(row.id)}`;
  const diff = await call(path).catch((error) => ({ error }));
  const parts = diff.error ? [diff.error.message] : words(diff, "before", "after");
  $("changes-diff").replaceChildren(...(parts.length ? parts : ["Neither version was measured on held-out images."]));
}

async function serve(row) {
  try {
    const path = `/v1/versions/${encodeURIComponent(row.id)}/rollback?relearn=${$("relearn").checked}`;
    await call(path, { method: "POST" });
    await refresh();
  } catch (error) {
    $("rollback").showModal();
    $("rollback-error").textContent = error.message;
  }
}
