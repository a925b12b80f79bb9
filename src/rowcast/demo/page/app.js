/**
 * The page: wires the connection, the lists, the timeline, the figures and the controls together.
 */

import { duration, element, number, plural, setText } from "./dom.js";
import { Figures } from "./figures.js";
import { LiveList } from "./live-list.js";
import { Rowcast } from "./rowcast.js";
import { Store } from "./store.js";
import { CHANNELS, describeTables } from "./tables.js";
import { Timeline } from "./timeline.js";

const DROP_MS = 3_000; // long enough to miss something, short enough to wait for
const TOAST_MS = 7_000;

const byId = (id) => document.getElementById(id);

const address = new URL("./realtime/ws", location.href);
address.protocol = address.protocol === "https:" ? "wss:" : "ws:";

const store = new Store(CHANNELS);
const rowcast = new Rowcast(address, store);
const tables = describeTables(store, (edit, request) => rowcast.mutate(edit, request));
const lists = Object.fromEntries(Object.keys(CHANNELS).map((id) => [id, new LiveList(byId(id), tables[id])]));
const timeline = new Timeline(byId("lane"));
const figures = new Figures(byId);

/* ---- rows ---- */

let planned = false;
const toFlash = new Map(Object.keys(CHANNELS).map((id) => [id, new Set()]));

/** Draw once for all that arrived since the last frame of the screen; a hidden tab draws too, only less often. */
function plan() {
  if (planned) return;
  planned = true;
  const draw = () => {
    if (!planned) return;
    planned = false;
    clearTimeout(late);
    render();
  };
  const late = setTimeout(draw, 250);
  requestAnimationFrame(draw);
}

function render() {
  for (const [id, list] of Object.entries(lists)) {
    const pending = new Set(store.edits.filter((edit) => edit.subscription === id).map((edit) => edit.key));
    list.render(store.rows(id), { ready: store.isReady(id), pending });
    list.flash(toFlash.get(id));
    toFlash.get(id).clear();
  }
  figures.edits(store.edits.length);
  figures.position(store.position);
}

/* ---- what the stream says ---- */

rowcast.addEventListener("happening", ({ detail: happening }) => {
  switch (happening.kind) {
    case "transaction": {
      const committed = Date.parse(happening.frame.timestamp);
      const latency = Date.now() - committed;
      const missed = committed < liveSince; // told afterwards: its delay is the interruption's, not the path's
      const own = new Set(happening.confirmed.map((edit) => `${edit.subscription} ${edit.key}`));
      for (const { id, key } of happening.changes) {
        // One's own edit is on the screen already; only others' changes draw the eye.
        if (!own.has(`${id} ${key}`)) toFlash.get(id).add(key);
      }
      figures.transaction(happening.changes.length, happening.confirmed.length);
      if (!missed) figures.latency(latency);
      timeline.transaction(happening, CHANNELS, latency, missed);
      break;
    }
    case "rows":
      timeline.note(`${CHANNELS[happening.id]}: ${plural(happening.count, "row")} ${happening.first ? "read" : "read anew"}`);
      break;
    case "resync":
      timeline.note(`${CHANNELS[happening.id]} must be read anew: ${happening.reason.replaceAll("_", " ")}`, "warning");
      break;
    case "error":
      timeline.note(`the server refuses: ${happening.message}`, "error");
      break;
    default:
  }
  plan();
});

rowcast.addEventListener("edited", plan);

rowcast.addEventListener("rejected", ({ detail: { edit, error } }) => {
  timeline.note(`your edit (${edit.label}) was rejected: ${error}`, "error");
  const toast = element("div", { class: "toast" }, error);
  byId("toasts").append(toast);
  setTimeout(() => toast.remove(), TOAST_MS);
  plan();
});

// Texts that do not fit are shown whole to whoever points at them.
document.querySelector("main").addEventListener("pointerover", ({ target }) => {
  if (target.matches(".name, .about, .column")) target.title = target.scrollWidth > target.clientWidth ? target.textContent : "";
});

/* ---- the connection ---- */

const SENTENCES = {
  connecting: "Connecting.",
  live: "Live: every commit is shown as it happens.",
  degraded: "The server has lost the database. Nothing is lost, it comes later.",
  reconnecting: "The connection is lost. Trying again.",
  offline: "Offline.",
};
let shownState = "";
let missedFrom = null;
let liveSince = 0;

rowcast.addEventListener("state", ({ detail: { name, reason, retryAt, roundTrip } }) => {
  byId("state").dataset.state = name;
  setText(byId("state-name"), name);
  byId("state").title = [SENTENCES[name], reason].filter(Boolean).join(" ");
  const away = name === "reconnecting" || name === "offline";
  const wait = Math.ceil((retryAt - Date.now()) / 1000);
  setText(byId("state-detail"), away && wait > 0 ? `in ${wait} s` : name === "live" && roundTrip !== null ? duration(roundTrip) : "");
  byId("state-detail").title = roundTrip === null ? "" : "round trip to the server";
  setText(byId("drop").querySelector("span"), away ? "Reconnect now" : "Drop connection");
  if (name === shownState) return;
  setText(byId("announcement"), SENTENCES[name]);
  if (away && missedFrom === null) {
    missedFrom = Date.now();
    timeline.note(reason, "warning");
  } else if (name === "degraded") {
    timeline.note(reason || SENTENCES.degraded, "warning");
  } else if (name === "live") {
    timeline.note(missedFrom === null
      ? "connected"
      : `back after ${duration(Date.now() - missedFrom)}; going on where the stream broke off`, "good");
    missedFrom = null;
    liveSince = Date.now();
    readActivity();
  }
  shownState = name;
});

setInterval(() => {
  figures.tick();
  if (rowcast.state.retryAt > 0) rowcast.dispatchEvent(new CustomEvent("state", { detail: rowcast.state }));
}, 1000);

byId("drop").addEventListener("click", () => {
  const { name } = rowcast.state;
  if (name === "reconnecting" || name === "offline") rowcast.reconnectNow();
  else rowcast.drop(DROP_MS);
});

byId("second").addEventListener("click", (event) => {
  const features = `popup,width=${Math.min(innerWidth, 1100)},height=${innerHeight},left=${screenX + 60},top=${screenY + 60}`;
  if (matchMedia("(min-width: 760px)").matches && open(location.href, "", features)) event.preventDefault();
});

/* ---- projects ---- */

let newProjects = 0;

byId("new-project").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = byId("new-project-name");
  const name = field.value.trim();
  if (!name) return;
  field.value = "";
  const row = { id: null, code: "NEW", name, client: "Internal", phase: "tender", documents: 0 };
  newProjects += 1;
  rowcast.mutate(
    { subscription: "projects", key: `new-${newProjects}`, label: "create", apply: () => row },
    { method: "POST", path: "./api/projects", body: { name } },
  );
});

/* ---- the activity of others ---- */

const activityOn = byId("activity-on");
const activityRate = byId("activity-rate");

function showActivity({ running, rate }) {
  activityOn.checked = running;
  activityRate.value = rate;
  setText(byId("activity-figure"), `${number(rate)}/s`);
}

async function readActivity() {
  const response = await fetch("./api/activity").catch(() => null);
  if (response?.ok) showActivity(await response.json());
}

async function writeActivity() {
  const setting = { running: activityOn.checked, rate: activityRate.valueAsNumber };
  showActivity(setting);
  const response = await fetch("./api/activity", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(setting),
  }).catch(() => null);
  if (!response?.ok) readActivity();
}

activityOn.addEventListener("change", writeActivity);
activityRate.addEventListener("change", writeActivity);
activityRate.addEventListener("input", () => setText(byId("activity-figure"), `${activityRate.value}/s`));
addEventListener("focus", readActivity);

// For the curious, in the browser's console: rowcastDemo.store.rows("projects")
globalThis.rowcastDemo = { store, rowcast };

render();
rowcast.start();
