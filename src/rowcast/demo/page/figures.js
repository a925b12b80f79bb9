/**
 * The figures above the lists: counters, the rate of changes with its chart, and how long a commit takes to here.
 */

import { duration, element, number, plural, setText } from "./dom.js";

const CHART_SECONDS = 30;
const RATE_SECONDS = 5;
const LATENCIES = 200; // the last ones, for median and tail

export class Figures {
  #byId;
  #transactions = 0;
  #changes = 0;
  #edits = 0;
  #seconds = new Array(CHART_SECONDS + 1).fill(0);
  #latencies = [];
  #bars;

  /** @param {(id: string) => HTMLElement} byId */
  constructor(byId) {
    this.#byId = byId;
    this.#bars = Array.from({ length: CHART_SECONDS }, () => element("i"));
    byId("chart").append(...this.#bars);
  }

  transaction(changes, confirmed) {
    this.#transactions += 1;
    this.#changes += changes;
    this.#edits += confirmed;
    this.#seconds[CHART_SECONDS] += changes;
    this.#write("transactions", number(this.#transactions));
    this.#write("changes", plural(this.#changes, "change"));
    this.#write("edits", number(this.#edits));
  }

  /** @param {number} latency milliseconds from a commit to here */
  latency(latency) {
    this.#latencies.push(latency);
    if (this.#latencies.length > LATENCIES) this.#latencies.shift();
    const sorted = [...this.#latencies].sort((one, other) => one - other);
    this.#write("latency", duration(sorted[Math.floor(sorted.length / 2)]));
    this.#write("latency-tail", `95 % under ${duration(sorted[Math.floor(sorted.length * 0.95)] + 1)}`);
  }

  edits(pending) {
    this.#write("pending", pending === 0 ? "none under way" : `${number(pending)} under way`);
  }

  position(position) {
    if (position === "") return;
    const [epoch, place] = position.split("-");
    this.#write("position", place.replace(/^0+(?=.)/, ""));
    this.#write("epoch", `epoch ${epoch.slice(0, 8)}…`);
    this.#byId("figure-position").title = position;
  }

  /** Once a second: the chart moves on. */
  tick() {
    const recent = this.#seconds.slice(-RATE_SECONDS);
    const rate = recent.reduce((sum, count) => sum + count, 0) / recent.length;
    this.#write("rate", rate === 0 || rate >= 10 ? number(rate) : rate.toFixed(1));
    const highest = Math.max(8, ...this.#seconds);
    this.#bars.forEach((bar, second) => {
      bar.style.transform = `scaleY(${this.#seconds[second + 1] / highest})`;
    });
    this.#seconds.push(0);
    this.#seconds.shift();
  }

  #write(name, text) {
    setText(this.#byId(`figure-${name}`), text);
  }
}
