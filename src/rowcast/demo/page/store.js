/**
 * The rows that this window knows: what the stream confirmed (base), and the window's own edits on top (overlay).
 *
 * The one rule of this file: base is written by frames only. An edit is a function over a row, folded over base
 * each time somebody looks; it leaves in the same step in which the transaction that carried it out arrives.
 * No I/O and no clock: frames in, happenings out.
 */

/** @typedef {{id: string, subscription: string, key: string, apply: (row: object|undefined) => object|undefined}} Edit */

export class Store {
  #subscriptions = new Map();
  #edits = [];
  #position = "";

  /** @param {Record<string, string>} channels subscription id → channel */
  constructor(channels) {
    for (const [id, channel] of Object.entries(channels)) {
      this.#subscriptions.set(id, {
        id, channel, state: "empty", shape: null, key: ["id"], rows: new Map(), position: "", chunks: null, later: [],
      });
    }
  }

  /** The position up to which everything is known; empty before the first frame. */
  get position() {
    return this.#position;
  }

  get edits() {
    return this.#edits;
  }

  /** Whether the rows of a subscription have come. */
  isReady(id) {
    return this.#subscriptions.get(id).position !== "";
  }

  /** The visible rows by key: the edits, in their order, folded over base. */
  rows(id) {
    const { rows } = this.#subscriptions.get(id);
    const mine = this.#edits.filter((edit) => edit.subscription === id);
    if (mine.length === 0) return rows;
    const visible = new Map(rows);
    for (const edit of mine) {
      const row = edit.apply(visible.get(edit.key));
      if (row) visible.set(edit.key, row);
      else visible.delete(edit.key);
    }
    return visible;
  }

  /** @param {Edit} edit */
  addEdit(edit) {
    this.#edits.push(edit);
  }

  /** The edit was rejected: it goes, and nobody else's change is undone. */
  removeEdit(id) {
    this.#edits = this.#edits.filter((edit) => edit.id !== id);
  }

  /** What to ask of a new connection: rows that are there go on from their position, others begin with a snapshot. */
  connected() {
    return [...this.#subscriptions.values()].map((subscription) => {
      const { id, channel, position, state } = subscription;
      if (state === "live") return { id, channel, since: position };
      this.#awaitSnapshot(subscription);
      return { id, channel, snapshot: true };
    });
  }

  /** What to ask for the rows of one subscription anew, after a `resync`. */
  renew(id) {
    const subscription = this.#subscriptions.get(id);
    this.#awaitSnapshot(subscription);
    return { id, channel: subscription.channel, snapshot: true };
  }

  /**
   * Take in a frame.
   * @returns {object[]} what happened: `{kind: "transaction" | "rows" | "resync" | "behind", …}`
   */
  receive(frame) {
    switch (frame.type) {
      case "subscribed": return this.#subscribed(frame);
      case "snapshot": return this.#snapshot(frame);
      case "transaction": return this.#transaction(frame);
      case "heartbeat": return this.#heartbeat(frame);
      case "resync": return this.#resync(frame);
      default: return [];
    }
  }

  #awaitSnapshot(subscription) {
    subscription.state = "loading";
    subscription.chunks = null;
    subscription.later = [];
  }

  #subscribed({ id, shape, key, position }) {
    const subscription = this.#subscriptions.get(id);
    if (!subscription) return [];
    subscription.shape = shape;
    subscription.key = key;
    this.#raise(position);
    return [];
  }

  #snapshot({ shape, chunk, rows, deleted = [], last = false, position }) {
    const happenings = [];
    for (const subscription of this.#subscriptions.values()) {
      if (subscription.shape !== shape || subscription.state !== "loading") continue;
      if (chunk === 0) subscription.chunks = new Map();
      const { chunks } = subscription;
      if (chunks === null) continue; // the rest of a snapshot whose beginning we did not ask for
      for (const key of deleted) chunks.delete(keyOf(subscription, key));
      for (const row of rows) chunks.set(keyOf(subscription, row), row);
      if (!last) continue;
      const before = subscription.rows;
      Object.assign(subscription, { rows: chunks, chunks: null, position, state: "live" });
      for (const transaction of subscription.later) this.#apply(transaction, subscription, []);
      subscription.later = [];
      this.#settle();
      happenings.push({ kind: "rows", id: subscription.id, count: subscription.rows.size, first: before.size === 0 });
    }
    return happenings;
  }

  #transaction(frame) {
    if (frame.base > this.#position && sameEpoch(frame.base, this.#position)) return [{ kind: "behind" }];
    const changes = [];
    for (const subscription of this.#subscriptions.values()) {
      if (subscription.state === "live") this.#apply(frame, subscription, changes);
      else if (subscription.state === "loading") subscription.later.push(frame);
    }
    this.#raise(frame.position);
    for (const edit of this.#edits) {
      if (frame.confirms?.includes(edit.id)) edit.confirmedAt = frame.position;
    }
    const confirmed = this.#settle();
    if (changes.length === 0 && confirmed.length === 0) return [];
    return [{ kind: "transaction", frame, changes, confirmed }];
  }

  #heartbeat({ position }) {
    if (position) {
      this.#raise(position);
      for (const subscription of this.#subscriptions.values()) {
        if (subscription.state === "live" && position > subscription.position) subscription.position = position;
      }
    }
    return [];
  }

  #resync({ id, shape, reason, after_ms: afterMs = 0, position }) {
    this.#raise(position);
    const happenings = [];
    for (const subscription of this.#subscriptions.values()) {
      if (id === undefined ? subscription.shape !== shape : subscription.id !== id) continue;
      subscription.state = "stale"; // its rows stay on the screen until the new ones replace them in one step
      happenings.push({ kind: "resync", id: subscription.id, reason, afterMs });
    }
    return happenings;
  }

  /** Apply one transaction's changes to one subscription, unless it knows them already. */
  #apply(frame, subscription, changes) {
    if (frame.position <= subscription.position) return;
    subscription.position = frame.position;
    const { rows } = subscription;
    for (const change of frame.changes) {
      if (change.shape !== subscription.shape) continue;
      const { op } = change;
      if (op === "TRUNCATE") {
        rows.clear();
        changes.push({ id: subscription.id, op, key: "", before: undefined, after: undefined });
        continue;
      }
      const key = keyOf(subscription, change.key);
      const formerKey = op === "UPDATE" && change.old ? keyOf(subscription, { ...change.key, ...change.old }) : key;
      const before = rows.get(formerKey) ?? change.old;
      if (formerKey !== key || op === "DELETE") rows.delete(formerKey);
      // A large value that did not change is absent from `new`: the row that is here has it.
      const after = op === "DELETE" ? undefined : { ...before, ...change.new };
      if (after) rows.set(key, after);
      changes.push({ id: subscription.id, op, key, before, after });
    }
  }

  /** Let go of the edits whose transaction is in base; one that concerns rows still to come waits for them. */
  #settle() {
    const settled = this.#edits.filter(({ subscription, confirmedAt }) => {
      const { state, position } = this.#subscriptions.get(subscription);
      const passed = confirmedAt <= position || !sameEpoch(confirmedAt ?? "", position);
      return confirmedAt !== undefined && state === "live" && passed;
    });
    if (settled.length > 0) this.#edits = this.#edits.filter((edit) => !settled.includes(edit));
    return settled;
  }

  #raise(position) {
    if (position > this.#position || !sameEpoch(position, this.#position)) this.#position = position;
  }
}

function keyOf(subscription, row) {
  return JSON.stringify(subscription.key.map((column) => row[column]));
}

/** Positions compare as text within one epoch, the part before the dash. */
function sameEpoch(one, other) {
  return one.slice(0, 16) === other.slice(0, 16);
}
