/**
 * The lane of events: each transaction as PostgreSQL committed it, and what happened to the connection and to
 * one's own edits meanwhile. Newest first.
 */

import { duration, element, icon, plural } from "./dom.js";

const MOST_ENTRIES = 120;
const MOST_CHANGES = 4; // of one transaction; the rest is a number
const MOST_CHARACTERS = 34;
const UNTOLD_COLUMNS = new Set(["updated_at", "created_at"]);
const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false };

export class Timeline {
  #root;
  #held = [];

  constructor(root) {
    this.#root = root;
    // Somebody who reads is not interrupted: what comes meanwhile is added afterwards.
    root.addEventListener("pointerleave", () => this.#release());
  }

  /**
   * @param {object} happening of kind `transaction`, from the store
   * @param {Record<string, string>} channels subscription id → channel
   * @param {number} latency milliseconds from the commit to here
   * @param {boolean} missed whether it was committed while this window was away
   */
  transaction({ frame, changes, confirmed }, channels, latency, missed) {
    const entry = element("li", { class: "entry transaction" });
    const head = element(
      "div", { class: "head" },
      element("time", { datetime: frame.timestamp }, new Date(frame.timestamp).toLocaleTimeString("en-GB", CLOCK)),
      element(
        "span", { class: missed ? "latency missed" : "latency", title: "from the commit in PostgreSQL to this page" },
        missed ? `missed, ${duration(latency)} ago` : duration(latency),
      ),
    );
    if (confirmed.length > 0) {
      const own = performance.now() - confirmed[0].since;
      head.append(element("span", { class: "own", title: "from your click to its confirmation in the stream" },
        icon("check"), `your edit, ${duration(own)}`));
    }
    head.append(element("span", { class: "place", title: `position ${frame.position}` }, `tx ${frame.txid}`));
    entry.append(head);
    for (const change of changes.slice(0, MOST_CHANGES)) entry.append(describe(change, channels[change.id]));
    if (changes.length > MOST_CHANGES) {
      entry.append(element("div", { class: "more" }, `and ${plural(changes.length - MOST_CHANGES, "more change", "more changes")}`));
    }
    this.#add(entry);
  }

  /** Something about the connection or an edit, as a sentence. */
  note(text, tone = "") {
    const time = new Date();
    this.#add(element(
      "li", { class: "entry note", "data-tone": tone },
      element("time", { datetime: time.toISOString() }, time.toLocaleTimeString("en-GB", CLOCK)),
      element("span", { class: "text" }, text),
    ));
  }

  #add(entry) {
    if (this.#root.matches(":hover") && this.#root.scrollTop > 0) {
      this.#held = [entry, ...this.#held].slice(0, MOST_ENTRIES);
      return;
    }
    this.#root.prepend(entry);
    while (this.#root.children.length > MOST_ENTRIES) this.#root.lastElementChild.remove();
  }

  #release() {
    const held = this.#held.reverse();
    this.#held = [];
    for (const entry of held) this.#add(entry);
  }
}

function describe({ id, op, key, before, after }, channel) {
  const row = element(
    "div", { class: "change", "data-table": id },
    element("span", { class: "operation", "data-op": op }, op.toLowerCase()),
    element("span", { class: "table" }, channel),
    element("span", { class: "key" }, key.slice(1, -1)),
  );
  const line = element("div", { class: "columns" });
  if (op === "UPDATE") {
    for (const [column, value] of Object.entries(after)) {
      if (UNTOLD_COLUMNS.has(column) || same(before?.[column], value)) continue;
      line.append(element(
        "span", { class: "column" },
        element("span", { class: "column-name" }, column),
        element("del", {}, short(before?.[column])),
        element("span", { class: "arrow", "aria-label": "became" }, "→"),
        element("ins", {}, short(value)),
      ));
    }
  } else if (op !== "TRUNCATE") {
    line.append(element("span", { class: "column" }, headline(after ?? before)));
  }
  if (line.childElementCount > 0) row.append(line);
  return row;
}

/** What a person would call the row. */
function headline(row = {}) {
  return short(row.name ?? row.document ?? (row.field ? `${row.field}: ${row.value}` : undefined) ?? row.item ?? "");
}

function same(one, other) {
  return one === other || JSON.stringify(one) === JSON.stringify(other);
}

function short(value) {
  if (value === undefined) return "?";
  const text = typeof value === "string" ? value : JSON.stringify(value);
  const characters = [...text.slice(0, 4 * MOST_CHARACTERS)];
  return characters.length > MOST_CHARACTERS ? `${characters.slice(0, MOST_CHARACTERS - 1).join("")}…` : characters.join("");
}
