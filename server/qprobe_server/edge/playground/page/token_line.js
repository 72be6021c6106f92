// The scores of one candidate's tokens as a line, with a cursor that mouse and arrow keys move.

import { makeSvg } from "./elements.js";
import { digitsFor, formatScore } from "./numbers.js";

const HEIGHT = 190;
const [TOP, RIGHT, BOTTOM, LEFT] = [12, 14, 26, 52];
const PAGE = 10;

export class TokenLine {
  /** `onMove` is called with the index of the token that the cursor is at. */
  constructor(element, onMove) {
    this.element = element;
    this.onMove = onMove;
    this.scores = [];
    this.index = 0;
    element.addEventListener("keydown", (event) => this.press(event));
    element.addEventListener("pointermove", (event) => this.point(event));
    element.addEventListener("pointerdown", (event) => this.point(event));
    new ResizeObserver(() => this.draw()).observe(element);
  }

  /**
   * Show scores. `domain` is the range of the y axis, one for all candidates of a prompt, so that
   * they can be compared; `score` is the candidate's own; `describe(index)` names a token.
   */
  show({ scores, domain, score, describe }) {
    Object.assign(this, { scores, domain, score, describe, digits: digitsFor(domain) });
    this.element.hidden = scores.length === 0;
    this.draw();
    this.move(0);
  }

  move(index) {
    if (this.scores.length === 0) return;
    this.index = Math.min(Math.max(index, 0), this.scores.length - 1);
    this.element.setAttribute("aria-valuemin", 1);
    this.element.setAttribute("aria-valuemax", this.scores.length);
    this.element.setAttribute("aria-valuenow", this.index + 1);
    this.element.setAttribute("aria-valuetext", this.describe(this.index));
    this.placeCursor();
    this.onMove(this.index);
  }

  press(event) {
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: PAGE, PageDown: -PAGE };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) this.move(this.index + steps[event.key]);
    else if (event.key === "Home") this.move(0);
    else if (event.key === "End") this.move(this.scores.length - 1);
    else return;
    event.preventDefault();
  }

  point(event) {
    const x = event.clientX - this.element.getBoundingClientRect().left;
    const part = (x - LEFT) / (this.width - LEFT - RIGHT);
    this.move(Math.round(part * (this.scores.length - 1)));
  }

  x(index) {
    const part = this.scores.length > 1 ? index / (this.scores.length - 1) : 0.5;
    return round(LEFT + part * (this.width - LEFT - RIGHT));
  }

  y(score) {
    const [low, high] = this.domain;
    const part = high > low ? (score - low) / (high - low) : 0.5;
    return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM));
  }

  draw() {
    this.width = this.element.clientWidth;
    if (this.width === 0 || this.scores.length === 0) return;
    const points = this.scores.map((score, index) => `${this.x(index)},${this.y(score)}`).join(" ");
    const end = this.width - RIGHT;
    this.rule = makeSvg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    this.dot = makeSvg("circle", { class: "dot", r: 4 });
    this.element.replaceChildren(makeSvg(
      "svg", { width: this.width, height: HEIGHT, viewBox: `0 0 ${this.width} ${HEIGHT}`, "aria-hidden": "true" },
      ...this.ticks(end),
      makeSvg("line", { class: "own", x1: LEFT, x2: end, y1: this.y(this.score), y2: this.y(this.score) }),
      this.rule,
      makeSvg("polyline", { class: "scores", points }),
      this.dot,
    ));
    this.placeCursor();
  }

  ticks(end) {
    const [low, high] = this.domain;
    const parts = [];
    for (const score of high > low ? [low, (low + high) / 2, high] : [low]) {
      const y = this.y(score);
      parts.push(makeSvg("line", { class: "grid", x1: LEFT, x2: end, y1: y, y2: y }));
      parts.push(makeSvg("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, formatScore(score, this.digits)));
    }
    const last = this.scores.length - 1;
    for (const [index, anchor] of last > 0 ? [[0, "start"], [last, "end"]] : [[0, "middle"]]) {
      parts.push(makeSvg("text", { x: this.x(index), y: HEIGHT - 6, "text-anchor": anchor }, `token ${index + 1}`));
    }
    return parts;
  }

  placeCursor() {
    if (this.rule === undefined) return;
    const x = this.x(this.index);
    this.rule.setAttribute("x1", x);
    this.rule.setAttribute("x2", x);
    this.dot.setAttribute("cx", x);
    this.dot.setAttribute("cy", this.y(this.scores[this.index]));
  }
}

const round = (value) => Math.round(value * 100) / 100;
