// The page: one look at the status a second; the parts refresh when the store's sequence moves on.

import { call } from "./api.js";
import * as classes from "./classes.js";
import { $, count, duration, h, plural, version } from "./dom.js";
import * as item from "./item.js";
import * as map from "./map.js";
import * as query from "./query.js";
import * as versions from "./versions.js";
import * as work from "./work.js";

const EVERY_MS = 1000;
const PARTS_EVERY_MS = 2000;
let seen = -1;
let drawnAt = 0;

async function look() {
  try {
    const status = await call("/v1/status");
    health(status);
    work.show(status);
    if (status.sequence !== seen && Date.now() - drawnAt >= PARTS_EVERY_MS) {
      drawnAt = Date.now();
      await Promise.all([classes.refresh(), versions.refresh(), map.refresh()]);
      seen = status.sequence; // only now: a part that failed is asked for again
    }
  } catch (error) {
    line("bad", error.status === 503 ? error.message : "the service does not answer");
  }
  setTimeout(look, document.hidden ? 10 * EVERY_MS : EVERY_MS);
}

function health(status) {
  const now = Date.now() / 1000;
  const { lag, driver } = status;
  const words = ["serving ", h("b", {}, version(status.version)), ` for ${duration(now - status.committed_at)}`,
    ` · ${plural(status.items, "item")} of ${plural(status.classes, "class")}`];
  if (lag.unindexed_shards) words.push(` · ${plural(lag.unindexed_shards, "shard")} ${duration(lag.unindexed_age_s)} behind`);
  else words.push(" · nothing behind");
  if (driver?.stage?.phase && driver.stage.phase !== "idle") {
    const { phase, step, total_steps: total } = driver.stage;
    words.push(` · ${phase}${total ? ` ${count(step)}/${count(total)}` : ""}`);
  } else if (lag.waiting_images) words.push(` · ${plural(lag.waiting_images, "image")} to learn`);
  if (!driver) words.push(" · driver away, searching goes on");
  const stale = now - status.checked_at > 10;
  line(stale ? "bad" : !driver || lag.unindexed_age_s > 30 ? "warn" : "good", ...words);
}

function line(level, ...words) {
  document.querySelector("#health .dot").className = `dot ${level}`;
  $("health-text").replaceChildren(...words);
}

query.start();
map.start();
classes.start();
item.start();
work.start();
look();
