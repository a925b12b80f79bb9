/**
 * A small Rowcast client: one WebSocket in the full form of the protocol, and edits sent through the user's API.
 *
 * The one rule of this file: an answer of the API never writes a row. It says that the edit was taken, or that it
 * was rejected; what the rows are now, the stream says.
 *
 * Events: `state` (the connection), `happening` (what a frame did; see store.js), `edited` (the overlay changed),
 * `rejected` (an edit, with the reason).
 */

const BACKOFF_SECONDS = [1, 2, 4, 8, 16, 30];
const WELCOME_MS = 10_000; // a server that accepts the socket and says nothing is as good as away
const PING_MS = 5_000; // shorter than the protocol's heartbeat: it is what the round-trip figure is measured with
const SILENCE_PINGS = 2.5;
const RENEW_MS = 3_000; // before asking again for rows that the server could not give
const CONFIRM_MS = 10_000; // an edit that was taken and not confirmed in this time is asked about again

export class Rowcast extends EventTarget {
  state = { name: "connecting", reason: "", attempt: 0, retryAt: 0, roundTrip: null };
  #url;
  #store;
  #socket = null;
  #timers = new Map();
  #attempt = 0;
  #pings = new Map();
  #ping = 0;
  #heardAt = 0;
  #comeBackMs = null;
  #lanes = new Map();
  #waiting = new Map();

  constructor(url, store) {
    super();
    this.#url = url;
    this.#store = store;
  }

  start() {
    addEventListener("online", () => this.reconnectNow());
    addEventListener("offline", () => this.#emit("state", this.state));
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.reconnectNow();
    });
    this.#connect();
  }

  /** Lose the connection as a cable would, and stay away for a while. */
  drop(milliseconds) {
    this.#comeBackMs = milliseconds;
    this.#lost("dropped by hand");
  }

  /** Do not wait for the next try. */
  reconnectNow() {
    if (!this.#socket) this.#connect();
  }

  /**
   * Show an edit at once and carry it out through the API.
   * @param {{subscription: string, key: string, label: string, apply: Function}} edit
   * @param {{method: string, path: string, body?: object}} request
   */
  mutate(edit, request) {
    const mine = { ...edit, id: randomId(), state: "pending", since: performance.now() };
    this.#store.addEdit(mine);
    this.#emit("edited", mine);
    // Edits of one row are sent one after the other: two connections could overtake each other.
    const lane = `${edit.subscription} ${edit.key}`;
    const before = this.#lanes.get(lane) ?? Promise.resolve();
    const answered = before.then(() => new Promise((resolve) => void this.#carryOut(mine, request, resolve)));
    this.#lanes.set(lane, answered);
    answered.then(() => this.#lanes.get(lane) === answered && this.#lanes.delete(lane));
  }

  async #carryOut(edit, { method, path, body }, answered) {
    for (let attempt = 0; this.#store.edits.includes(edit); attempt += 1) {
      const response = await fetch(path, {
        method,
        headers: { "Rowcast-Mutation": edit.id, ...(body && { "Content-Type": "application/json" }) },
        body: body && JSON.stringify(body),
      }).catch(() => null);
      if (response?.ok) {
        answered();
        attempt = 0;
        edit.state = "sent";
        if (this.#store.edits.includes(edit)) await this.#settled(edit);
      } else if (response && response.status < 500 && ![408, 425, 429].includes(response.status)) {
        answered();
        this.#store.removeEdit(edit.id);
        const { error = `the API answered ${response.status}` } = await response.json().catch(() => ({}));
        this.#emit("rejected", { edit, error });
      } else {
        // Nobody knows whether it was carried out. The id makes it safe to send again; until then it stays shown.
        edit.state = "unconfirmed";
        this.#emit("edited", edit);
        await new Promise((resolve) => setTimeout(resolve, backoffMs(attempt)));
      }
    }
    answered();
  }

  /** Until the edit is confirmed, its rows were read anew (so that its confirmation may have been missed), or time is up. */
  #settled(edit) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, CONFIRM_MS);
      this.#waiting.set(edit, () => {
        clearTimeout(timer);
        resolve();
      });
    }).finally(() => this.#waiting.delete(edit));
  }

  #connect() {
    this.#stop();
    this.#comeBackMs = null;
    this.#setState(this.#attempt === 0 ? "connecting" : "reconnecting", "");
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    this.#after("welcome", WELCOME_MS, () => this.#lost("the server does not answer"));
    socket.onopen = () => this.#send({
      type: "hello", version: 1, client: "rowcast-demo-page", subscriptions: this.#store.connected(),
    });
    socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    socket.onclose = ({ code, reason }) => this.#lost(reason || "the connection was lost", code);
  }

  #receive(frame) {
    this.#heardAt = performance.now();
    switch (frame.type) {
      case "welcome":
        this.#attempt = 0;
        this.#cancel("welcome");
        this.#setState(frame.state === "live" ? "live" : "degraded", "");
        this.#beat();
        break;
      case "status":
        this.#setState(frame.state === "live" ? "live" : "degraded", frame.reason ?? "");
        break;
      case "heartbeat":
        this.#roundTrip(frame);
        break;
      case "goodbye":
        this.#comeBackMs = frame.after_ms;
        break;
      case "error":
        if (frame.code === "unknown_subscription") break; // of asking anew where the server had ended it already
        this.#emit("happening", { kind: "error", code: frame.code, message: frame.message });
        if (frame.id && ["snapshot_failed", "unknown_channel"].includes(frame.code)) this.#renew(frame.id, RENEW_MS);
        break;
      default:
    }
    for (const happening of this.#store.receive(frame)) {
      if (happening.kind === "behind") this.#lost("a part of the stream is missing");
      if (happening.kind === "resync") this.#renew(happening.id, happening.afterMs);
      if (happening.kind === "rows") this.#wake((edit) => edit.subscription === happening.id);
      if (happening.kind === "transaction") this.#wake((edit) => happening.confirmed.includes(edit));
      this.#emit("happening", happening);
    }
  }

  #wake(concerns) {
    for (const [edit, resume] of this.#waiting) if (concerns(edit)) resume();
  }

  #renew(id, milliseconds) {
    this.#after(`renew ${id}`, milliseconds, () => {
      this.#send({ type: "unsubscribe", id });
      this.#send({ type: "subscribe", ...this.#store.renew(id) });
    });
  }

  /** Pings measure the round trip, tell the server that we live, and find out when it does not. */
  #beat() {
    const now = performance.now();
    if (now - this.#heardAt > PING_MS * SILENCE_PINGS) {
      this.#lost("the server fell silent");
      return;
    }
    this.#ping += 1;
    this.#pings.set(this.#ping, now);
    this.#send({ type: "heartbeat", id: this.#ping });
    this.#after("beat", PING_MS, () => this.#beat());
  }

  #roundTrip({ id }) {
    const sentAt = this.#pings.get(id);
    if (sentAt === undefined) {
      // In a hidden tab timers hardly run, but messages come: the server's own heartbeat is answered as well.
      this.#send({ type: "heartbeat" });
      return;
    }
    this.#pings.delete(id);
    this.#emit("state", Object.assign(this.state, { roundTrip: performance.now() - sentAt }));
  }

  #lost(reason, code = 1006) {
    this.#stop();
    if (code >= 4500 && code < 5000) {
      this.#setState("offline", `refused: ${reason}`);
      return;
    }
    const wait = this.#comeBackMs ?? backoffMs(this.#attempt);
    this.#attempt += 1;
    this.#setState(navigator.onLine === false ? "offline" : "reconnecting", reason, Date.now() + wait);
    this.#after("retry", wait, () => this.#connect());
  }

  /** End the connection and everything that was planned on it. */
  #stop() {
    for (const name of [...this.#timers.keys()]) this.#cancel(name);
    this.#pings.clear();
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #after(name, milliseconds, action) {
    this.#cancel(name);
    this.#timers.set(name, setTimeout(action, milliseconds));
  }

  #cancel(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }

  #setState(name, reason, retryAt = 0) {
    this.state = { name, reason, attempt: this.#attempt, retryAt, roundTrip: name === "live" ? this.state.roundTrip : null };
    this.#emit("state", this.state);
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** Full jitter: a thousand windows that lose one server do not come back in one moment. */
function backoffMs(attempt) {
  return Math.random() * 1000 * BACKOFF_SECONDS[Math.min(attempt, BACKOFF_SECONDS.length - 1)];
}

/** Like crypto.randomUUID(), which browsers give to https and localhost only. */
function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
