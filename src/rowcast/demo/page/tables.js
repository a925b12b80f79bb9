/**
 * The five tables of the demo: how a row looks, and what can be done with it.
 */

import { element, icon, number, plural, setAttribute, setText } from "./dom.js";

/** Subscription id → channel. The ids are what the rest of the page calls them. */
export const CHANNELS = {
  projects: "projects",
  jobs: "extraction_jobs",
  results: "extraction_results",
  matches: "supplier_matches",
  layers: "data_layers",
};

/**
 * @param {import("./store.js").Store} store
 * @param {(edit: object, request: object) => void} mutate
 * @returns {Record<string, {order: Function, create: Function}>} for LiveList, by subscription id
 */
export function describeTables(store, mutate) {
  const newestFirst = (row) => row.id ?? Infinity;
  const projectOf = (row) => store.rows("projects").get(`[${row.project_id}]`)?.code ?? "–";

  /** Change columns of the row at once, and ask the API for the same. */
  const change = (subscription, key, label, columns, method, path, body) => mutate(
    { subscription, key, label, apply: (row) => row && { ...row, ...(typeof columns === "function" ? columns(row) : columns) } },
    { method, path, body },
  );

  return {
    projects: { order: newestFirst, create: createProject },
    jobs: { order: newestFirst, create: createJob },
    results: { order: newestFirst, create: createResult },
    matches: { order: newestFirst, create: createMatch },
    layers: { order: (row) => -row.id, create: createLayer },
  };

  function createProject(key) {
    let current;
    const code = element("span", { class: "tag" });
    const name = element("span", { class: "name" });
    const about = element("span", { class: "about" });
    const edit = iconButton("pencil", () => editText(name, current.name, "Project name", (text) => change(
      "projects", key, "rename", { name: text }, "PATCH", `./api/projects/${current.id}`, { name: text },
    )));
    const remove = iconButton("trash", () => ask(actions, "Delete?", () => mutate(
      { subscription: "projects", key, label: "delete", apply: () => undefined },
      { method: "DELETE", path: `./api/projects/${current.id}` },
    )));
    const actions = element("div", { class: "actions" }, edit, remove);
    return {
      root: element("li", { class: "row project" }, code, element("div", { class: "main" }, name, about), actions),
      update(row) {
        current = row;
        setText(code, row.code);
        setText(name, row.name);
        setText(about, `${row.client} · ${row.phase} · ${plural(row.documents, "document")}`);
        label(edit, `Rename ${row.name}`);
        label(remove, `Delete ${row.name}`);
        actions.inert = row.id === null; // still on its way to the database
      },
    };
  }

  function createJob(key) {
    let current;
    const name = element("span", { class: "name" });
    const about = element("span", { class: "about" });
    const status = element("span", { class: "status" });
    const percent = element("span", { class: "figure" });
    const bar = element("div", { class: "bar" });
    const progress = element("div", { class: "progress", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, bar);
    const action = element("button", { type: "button", class: "button", onclick: () => {
      if (isActive(current)) {
        change("jobs", key, "cancel", { status: "cancelled" }, "POST", `./api/jobs/${current.id}/cancel`);
      } else {
        change("jobs", key, "start", { status: "running", progress: 0 }, "POST", `./api/jobs/${current.id}/start`);
      }
    } });
    return {
      root: element(
        "li", { class: "row job" },
        element("div", { class: "main" }, name, about),
        element("div", { class: "gauge" }, element("div", { class: "legend" }, status, percent), progress),
        element("div", { class: "actions" }, action),
      ),
      update(row) {
        current = row;
        setText(name, row.document);
        setText(about, [projectOf(row), plural(row.pages, "page"), row.worker].filter(Boolean).join(" · "));
        setText(status, row.status);
        setAttribute(status, "data-status", row.status);
        setAttribute(progress, "data-status", row.status);
        setText(percent, `${row.progress} %`);
        setAttribute(progress, "aria-valuenow", row.progress);
        setAttribute(progress, "aria-label", `Progress of ${row.document}`);
        bar.style.transform = `scaleX(${row.progress / 100})`;
        setText(action, isActive(row) ? "Cancel" : row.status === "completed" ? "Run again" : "Start");
        label(action, `${action.textContent} ${row.document}`);
      },
    };
  }

  function createResult(key) {
    let current;
    const field = element("span", { class: "field" });
    const value = element("span", { class: "name value" });
    const about = element("span", { class: "about" });
    const confidence = createMeter("Confidence");
    const path = () => `./api/results/${current.id}`;
    const accept = textButton("check", "Accept", () => change(
      "results", key, "accept", { status: "accepted" }, "POST", `${path()}/accept`,
    ), "primary");
    const edit = iconButton("pencil", () => editText(value, current.value, "Corrected value", (text) => change(
      "results", key, "correct", { value: text, status: "corrected" }, "PATCH", path(), { value: text },
    )));
    const undo = textButton("undo", "Undo", () => change(
      "results", key, "undo", (row) => ({ status: "pending", value: row.extracted_value }), "POST", `${path()}/undo`,
    ));
    const status = element("span", { class: "status" });
    return {
      root: element(
        "li", { class: "row result" },
        element("div", { class: "main" }, field, value),
        element("div", { class: "side" }, about, confidence.root),
        element("div", { class: "actions" }, status, accept, edit, undo),
      ),
      update(row) {
        current = row;
        const job = store.rows("jobs").get(`[${row.job_id}]`);
        setText(field, row.field);
        setText(value, row.value);
        setText(about, `${job?.document ?? "document"}, p. ${row.page}`);
        confidence.update(row.confidence * 100, row.field);
        const open = row.status === "pending";
        setText(status, row.status);
        setAttribute(status, "data-status", row.status);
        if (open) offer([accept, edit], [status, undo]);
        else offer([status, undo], [accept, edit]);
        label(accept, `Accept ${row.field}: ${row.value}`);
        label(edit, `Correct ${row.field}: ${row.value}`);
        label(undo, `Undo: ${row.field} is ${row.status}`);
      },
    };
  }

  function createMatch(key) {
    let current;
    const item = element("span", { class: "name" });
    const about = element("span", { class: "about" });
    const score = createMeter("Score");
    const decide = (verb, status) => change("matches", key, verb, { status }, "POST", `./api/matches/${current.id}/${verb}`);
    const confirm = iconButton("check", () => decide("confirm", "confirmed"), "primary");
    const reject = iconButton("cross", () => decide("reject", "rejected"));
    const undo = iconButton("undo", () => decide("undo", "proposed"));
    const status = element("span", { class: "status" });
    return {
      root: element(
        "li", { class: "row match" },
        element("div", { class: "main" }, item, about),
        score.root,
        element("div", { class: "actions" }, status, confirm, reject, undo),
      ),
      update(row) {
        current = row;
        const price = row.unit_price === null ? "" : `€ ${number(row.unit_price)}`;
        const delivery = row.lead_time_days === null ? "" : `${row.lead_time_days} days`;
        setText(item, row.item);
        setText(about, [row.supplier, price, delivery, projectOf(row)].filter(Boolean).join(" · "));
        score.update(row.score, `${row.item}, ${row.supplier}`);
        const open = row.status === "proposed";
        setText(status, row.status);
        setAttribute(status, "data-status", row.status);
        if (open) offer([confirm, reject], [status, undo]);
        else offer([status, undo], [confirm, reject]);
        label(confirm, `Confirm ${row.supplier} for ${row.item}`);
        label(reject, `Reject ${row.supplier} for ${row.item}`);
        label(undo, `Undo: ${row.supplier} is ${row.status}`);
      },
    };
  }

  function createLayer(key) {
    let current;
    const swatch = element("span", { class: "swatch" });
    const name = element("span", { class: "name" });
    const about = element("span", { class: "about" });
    const visible = element("input", { type: "checkbox", role: "switch", class: "switch", onchange: () => change(
      "layers", key, visible.checked ? "show" : "hide", { visible: visible.checked },
      "PATCH", `./api/layers/${current.id}`, { visible: visible.checked },
    ) });
    return {
      root: element(
        "li", { class: "row layer" },
        swatch,
        element("div", { class: "main" }, name, about),
        element("div", { class: "actions" }, visible),
      ),
      update(row) {
        current = row;
        if (swatch.dataset.geometry !== row.geometry) swatch.replaceChildren(icon(row.geometry));
        setAttribute(swatch, "data-geometry", row.geometry);
        swatch.style.color = row.colour;
        setText(name, row.name);
        setText(about, `${projectOf(row)} · ${plural(row.features, "feature")} · version ${row.version}`);
        visible.checked = row.visible;
        setAttribute(visible, "aria-label", `Show ${row.name}`);
      },
    };
  }
}

function isActive(job) {
  return job.status === "running" || job.status === "queued";
}

function createMeter(what) {
  const bar = element("div", { class: "bar" });
  const track = element("div", { class: "meter", role: "meter", "aria-valuemin": 0, "aria-valuemax": 100 }, bar);
  const figure = element("span", { class: "figure" });
  return {
    root: element("div", { class: "rating" }, track, figure),
    update(value, of) {
      setText(figure, value.toFixed(0));
      setAttribute(track, "aria-valuenow", value);
      setAttribute(track, "aria-label", `${what} of ${of}`);
      setAttribute(track, "data-level", value >= 85 ? "high" : value >= 70 ? "middle" : "low");
      bar.style.transform = `scaleX(${value / 100})`;
    },
  };
}

function iconButton(name, onclick, kind = "") {
  return element("button", { type: "button", class: `button square ${kind}`, onclick }, icon(name));
}

function textButton(name, text, onclick, kind = "") {
  return element("button", { type: "button", class: `button ${kind}`, onclick }, icon(name), text);
}

function label(button, text) {
  setAttribute(button, "aria-label", text);
  setAttribute(button, "title", text);
}

/** Show the elements of one state and hide the others; the focus goes over to what takes a button's place. */
function offer(shown, hidden) {
  const focused = hidden.includes(document.activeElement);
  for (const one of shown) one.hidden = false;
  if (focused) shown.find((one) => one.matches("button")).focus();
  for (const one of hidden) one.hidden = true;
}

/** Ask for a second click in the place of the first: no dialog, and nothing moves. */
function ask(actions, question, act) {
  const former = [...actions.children];
  const restore = () => {
    clearTimeout(timer);
    if (yes.isConnected) actions.replaceChildren(...former);
  };
  const yes = element("button", { type: "button", class: "button danger", onclick: act, onblur: restore }, question);
  const timer = setTimeout(restore, 4000);
  actions.replaceChildren(yes);
  yes.focus();
}

/** A field in the place of a text: Enter or leaving it saves, Escape does not. */
function editText(text, value, what, save) {
  let open = true;
  const close = (take) => {
    if (!open) return;
    open = false;
    const written = field.value.trim();
    field.replaceWith(text);
    if (take && written && written !== value) save(written);
  };
  const field = element("input", {
    class: "edit", "aria-label": what, maxlength: 120, value,
    onkeydown: (event) => {
      if (event.key === "Enter") close(true);
      if (event.key === "Escape") close(false);
    },
    onblur: () => close(true),
  });
  text.replaceWith(field);
  field.select();
}
