// What waits, what was refused, what could not be used.

import { call } from "./api.js";
import { $, count, duration, h, plural } from "./dom.js";

const QUEUES = [["index", "to be indexed"], ["boundary", "for their task to close"], ["learn", "to be learnt"]];
const ROWS = 50;
let drawn = "";
let refusedCount = 0;
let refusedShown = 0;

/** Show the status that the page has just asked for. */
export function show(status) {
  const driver = status.driver ?? {};
  const rows = driver.queue_shards
    ? QUEUES.filter(([name]) => driver.queue_shards[name])
      .map(([name, words]) => `${plural(driver.queue_shards[name], "shard")} ${words}, the oldest for ${duration(driver.queue_age_s?.[name] ?? 0)}`)
    : [];
  if (!driver.queue_shards && status.lag.unindexed_shards) rows.push(`${plural(status.lag.unindexed_shards, "shard")} to be indexed`);
  if (!driver.queue_shards && status.lag.waiting_images) rows.push(`${plural(status.lag.waiting_images, "image")} to be learnt`);
  list("queue", rows.length || driver.problem ? [driver.problem, ...rows, ...(driver.open_task ?? [])].filter(Boolean) : ["nothing"]);
  const bad = Object.entries(status.quarantined ?? {}).sort((a, b) => b[1] - a[1]);
  list("quarantined", bad.length ? bad.map(([reason, n]) => `${plural(n, "row")}: ${reason.replaceAll("_", " ")}`) : ["nothing"]);
  $("quarantine-how").hidden = $("refused-rows").hidden = !bad.length;
  refusedCount = bad.reduce((sum, [, n]) => sum + n, 0);
  listRefused();
}

/** List the newest rows that could not be used, while that is open and their number has changed. */
async function listRefused() {
  if (!$("refused-rows").open || refusedShown === refusedCount) return;
  const now = (refusedShown = refusedCount);
  try {
    const found = (await call(`/v1/quarantine?limit=${ROWS}`)).rows;
    $("refused").replaceChildren(...found.map((one) => h("tr", {}, h("td", {}, one.reason.replaceAll("_", " ")), h("td", { class: "text" }, one.detail),
      h("td", { class: "text" }, one.remedy), h("td", { class: "wide text" }, one.shard), h("td", { class: "n wide" }, one.row < 0 ? "all" : count(one.row)))));
    $("refused-note").textContent = now > found.length ? `the newest ${count(found.length)} of ${count(now)}` : "";
  } catch (error) {
    refusedShown = 0; // asked again with the next look
    $("refused-note").textContent = error.message;
  }
}

/** Listen to the parts of this section that are opened. */
export function start() {
  $("refused-rows").addEventListener("toggle", listRefused);
}

/** Show the tasks that the served version has not learnt. */
export function refused(tasks) {
  const key = JSON.stringify(tasks.map((task) => [task.task, task.state, task.in_words]));
  if (key === drawn) return; // a click on its way is not lost
  drawn = key;
  $("not-learnt").replaceChildren(...(tasks.length ? tasks.map(line) : [h("li", {}, "none")]));
}

function line(task) {
  if (task.state !== "skipped" || task.reason.endsWith("nothing to learn")) return h("li", {}, task.in_words);
  const said = h("span", { role: "status" });
  const again = async (event) => {
    event.currentTarget.disabled = true;
    try {
      await call(`/v1/tasks/${encodeURIComponent(task.task)}/relearn`, { method: "POST" });
      said.textContent = " it is learnt again once those that wait are learnt";
    } catch (error) {
      said.textContent = ` ${error.message}`;
    }
  };
  return h("li", {}, task.in_words, " ", h("button", { onclick: again }, "Learn it again", h("span", { class: "sr" }, `: ${task.task}`)), said);
}

function list(id, lines) {
  const text = lines.join("\n");
  if ($(id).dataset.text === text) return;
  $(id).dataset.text = text;
  $(id).replaceChildren(...lines.map((one) => h("li", {}, one)));
}
