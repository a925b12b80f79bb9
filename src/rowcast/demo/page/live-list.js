/**
 * One table on the screen: keyed rows that are changed in place.
 *
 * The one rule of this file: what did not change is not touched, and a change never moves what somebody is about
 * to click. New rows come in above; while the pointer or the focus is in the list, it scrolls by their height.
 */

import { element, setText } from "./dom.js";

// A screen of them is plenty; the count in the heading says how many there are.
const MOST_ROWS = 60;

const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class LiveList {
  #root;
  #count;
  #empty;
  #views = new Map();
  #describe;
  #engaged = false;
  #leftTop = false;

  /**
   * @param {HTMLElement} section its `ul` gets the rows, its `.count` their number
   * @param {{order: (row: object) => number, create: (key: string) => {root: HTMLElement, update: (row: object) => void}}} describe
   *   rows are shown by falling `order`
   */
  constructor(section, describe) {
    this.#root = section.querySelector("ul");
    this.#count = section.querySelector(".count");
    this.#empty = element("li", { class: "empty" }, "Waiting for the first rows …");
    this.#root.append(this.#empty);
    this.#describe = describe;
    const engage = () => (this.#engaged = true);
    const release = () => {
      this.#engaged = this.#root.matches(":hover, :focus-within");
      if (this.#engaged || !this.#leftTop) return;
      this.#leftTop = false;
      this.#root.scrollTo({ top: 0, behavior: calm.matches ? "auto" : "smooth" });
    };
    this.#root.addEventListener("pointerenter", engage);
    this.#root.addEventListener("focusin", engage);
    this.#root.addEventListener("pointerleave", release);
    this.#root.addEventListener("focusout", () => setTimeout(release));
  }

  /** Make the list equal to the rows. */
  render(rows, { ready, pending }) {
    const { order, create } = this.#describe;
    const sorted = [...rows].sort(([, one], [, other]) => order(other) - order(one)).slice(0, MOST_ROWS);
    const heightBefore = this.#root.scrollHeight;
    const anchored = this.#engaged && this.#views.size > 0 ? this.#firstVisible() : null;
    const wanted = new Set(sorted.map(([key]) => key));
    for (const [key, view] of this.#views) {
      if (wanted.has(key)) continue;
      view.root.remove();
      this.#views.delete(key);
    }
    let next = this.#root.firstElementChild;
    for (const [key, row] of sorted) {
      let view = this.#views.get(key);
      if (!view) {
        view = create(key);
        view.root.dataset.key = key;
        this.#views.set(key, view);
      }
      view.update(row); // also where the row is the same: it may show something of another table's row
      view.root.toggleAttribute("data-pending", pending.has(key));
      if (view.root === next) next = next.nextElementSibling;
      else this.#root.insertBefore(view.root, next);
    }
    setText(this.#count, ready ? String(rows.size) : "");
    setText(this.#empty, ready ? "Nothing here." : "Waiting for the first rows …");
    this.#empty.hidden = sorted.length > 0;
    if (anchored?.isConnected && this.#root.scrollHeight !== heightBefore) this.#holdStill(anchored);
  }

  /** Draw the eye to rows that somebody changed. */
  flash(keys) {
    if (calm.matches) return;
    for (const key of keys) {
      const view = this.#views.get(key);
      if (!view) continue;
      view.flash?.cancel();
      view.flash = view.root.animate(
        [{ backgroundColor: "var(--flash)" }, { backgroundColor: "transparent" }],
        { duration: 1400, easing: "cubic-bezier(.2, .6, .3, 1)" },
      );
    }
  }

  #firstVisible() {
    const top = this.#root.scrollTop;
    for (const child of this.#root.children) {
      if (child.offsetTop - this.#root.offsetTop >= top) {
        this.#anchorTop = child.offsetTop;
        return child;
      }
    }
    return null;
  }

  #anchorTop = 0;

  #holdStill(anchored) {
    const moved = anchored.offsetTop - this.#anchorTop;
    if (moved <= 0) return;
    this.#leftTop ||= this.#root.scrollTop === 0;
    this.#root.scrollTop += moved;
  }
}
