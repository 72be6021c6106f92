// One candidate in full: its figures, the line of its token scores, and its text, tinted by them.

import { describeEnd } from "./cards.js";
import { byId, fillFigures, make } from "./elements.js";
import { digitsFor, formatPercent, formatScore } from "./numbers.js";
import { TokenLine } from "./token_line.js";

export class Detail {
  constructor() {
    this.dialog = byId("detail");
    this.line = new TokenLine(byId("line"), (index) => this.pointAt(index));
    this.spans = [];
    byId("detail-close").addEventListener("click", () => this.dialog.close());
    byId("detail-previous").addEventListener("click", () => this.step(-1));
    byId("detail-next").addEventListener("click", () => this.step(1));
    // Only the backdrop counts as the dialog itself: all inside is a child of it.
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
    byId("detail-text").addEventListener("pointerover", (event) => {
      const index = this.spans.indexOf(event.target);
      if (index >= 0 && index < this.tokenScores.length) this.line.move(index);
    });
  }

  /** Open candidate `index`. `weights` are those of now, `order` is that of the cards. */
  open(result, index, { weights, likeliest, order }) {
    Object.assign(this, { result, weights, likeliest, order });
    // The line measures itself, and cannot while it is not shown.
    if (!this.dialog.open) this.dialog.showModal();
    this.show(index);
  }

  step(by) {
    const place = this.order.indexOf(this.index) + by;
    this.show(this.order[(place + this.order.length) % this.order.length]);
  }

  get text() {
    return this.result.candidates[this.index].text;
  }

  show(index) {
    this.index = index;
    const { candidates, scores, selected, confidence } = this.result;
    const candidate = candidates[index];
    this.tokenScores = candidate.token_scores ?? [];
    this.tokens = candidate.tokens ?? [];
    const all = candidates.flatMap((each) => each.token_scores ?? []);
    byId("detail-title").textContent = `Candidate ${index}`;
    byId("detail-badges").replaceChildren(
      ...(selected.includes(index) ? [make("span", { class: "badge chosen" }, "chosen")] : []),
      ...(this.likeliest.includes(index) ? [make("span", { class: "badge now" }, "most probable")] : []),
    );
    fillFigures(byId("detail-figures"), [
      ["Score", formatScore(scores[index], digitsFor(scores))],
      ["Weight", formatPercent(this.weights[index])],
      ...(confidence ? [["Confidence", formatScore(confidence[index])]] : []),
      ["Tokens", String(candidate.num_tokens ?? "unknown")],
      ["Ended", describeEnd(candidate)],
    ]);
    this.digits = digitsFor(all);
    this.showText(candidate.text, spread(all));
    this.line.show({
      scores: this.tokenScores,
      domain: all.length > 0 ? [Math.min(...all), Math.max(...all)] : [0, 1],
      score: scores[index],
      describe: (token) => this.describe(token),
    });
    byId("line-key").hidden = this.tokenScores.length === 0;
    if (this.tokenScores.length === 0) byId("line-readout").textContent = "No token of it was scored.";
  }

  showText(text, [low, high]) {
    this.spans = this.tokens.map((token, index) => {
      const span = make("span", index < this.tokenScores.length ? {} : { class: "unscored" }, token);
      if (index < this.tokenScores.length && high > low) {
        const part = (this.tokenScores[index] - low) / (high - low);
        span.style.setProperty("--tint", Math.min(Math.max(part, 0), 1));
      }
      return span;
    });
    byId("detail-text").replaceChildren(...(this.spans.length > 0 ? this.spans : [text]));
    byId("legend").hidden = this.tokenScores.length === 0;
    const steps = [0, 0.25, 0.5, 0.75, 1].map((part) => {
      const step = make("i");
      step.style.setProperty("--tint", part);
      return step;
    });
    byId("legend").replaceChildren(formatScore(low, this.digits), ...steps, formatScore(high, this.digits));
  }

  pointAt(index) {
    for (const span of this.dialog.querySelectorAll(".at")) span.classList.remove("at");
    const span = this.spans[index];
    span?.classList.add("at");
    // Only inside the text's own box: the line must not scroll away from under the mouse.
    if (span) {
      const box = byId("detail-text");
      const above = span.offsetTop - box.offsetTop;
      if (above < box.scrollTop || above + span.offsetHeight > box.scrollTop + box.clientHeight) {
        box.scrollTop = above - box.clientHeight / 2;
      }
    }
    byId("line-readout").replaceChildren(
      make("span", {}, `${index + 1} of ${this.tokenScores.length}`),
      make("code", {}, JSON.stringify(this.tokens[index] ?? "")),
      make("strong", {}, formatScore(this.tokenScores[index], this.digits)),
    );
  }

  describe(index) {
    const token = JSON.stringify(this.tokens[index] ?? "");
    return `token ${index + 1} of ${this.tokenScores.length}, ${token}, score ${formatScore(this.tokenScores[index], this.digits)}`;
  }
}

/** Return the range of the tints: without the outer 2 % a single outlier would leave no contrast. */
function spread(values) {
  if (values.length === 0) return [0, 0];
  const sorted = [...values].sort((one, other) => one - other);
  const cut = Math.floor(0.02 * (sorted.length - 1));
  return [sorted[cut], sorted[sorted.length - 1 - cut]];
}
