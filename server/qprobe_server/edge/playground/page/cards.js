// The candidates of a run as cards. Weights are set again and again; all else once.

import { byId, make } from "./elements.js";
import { digitsFor, formatPercent, formatScore, plural } from "./numbers.js";

const MAX_SKELETONS = 64;

export class Cards {
  /** `onOpen` is called with the index of a candidate that is to be shown in detail. */
  constructor(onOpen) {
    this.list = byId("cards");
    this.onOpen = onOpen;
    this.cards = [];
  }

  clear() {
    this.cards = [];
    this.list.replaceChildren();
    this.list.removeAttribute("aria-busy");
  }

  showSkeletons(k) {
    this.clear();
    this.list.setAttribute("aria-busy", "true");
    for (let i = 0; i < Math.min(k, MAX_SKELETONS); i += 1) {
      this.list.append(make("li", { class: "card skeleton", "aria-hidden": "true" }, ...Array.from({ length: 5 }, () => make("i"))));
    }
  }

  /** Show a result of the reply's `q_probe`. */
  show({ candidates, scores, selected, vote, confidence }) {
    this.clear();
    this.scores = scores;
    const [low, high, digits] = [Math.min(...scores), Math.max(...scores), digitsFor(scores)];
    this.cards = candidates.map((candidate, index) => {
      const position = high > low ? (scores[index] - low) / (high - low) : 1;
      const notes = [describeVote(vote, index), confidence && `confidence ${formatScore(confidence[index])}`];
      const card = this.makeCard(candidate, index, selected.includes(index), notes);
      card.score.meter.style.setProperty("--fill", position);
      card.score.value.textContent = formatScore(scores[index], digits);
      return card;
    });
  }

  /** `notes` stand below, the empty ones left out. */
  makeCard(candidate, index, isChosen, notes) {
    const open = make("button", { type: "button", class: "open" }, `Candidate ${index}`);
    open.addEventListener("click", () => this.onOpen(index));
    const now = make("span", { class: "badge now", hidden: "" }, "most probable");
    const chosen = isChosen ? make("span", { class: "badge chosen" }, "chosen") : null;
    const text = candidate.text.trim() === ""
      ? make("p", { class: "text none" }, "(empty)")
      : make("p", { class: "text" }, candidate.text.trim());
    const [score, weight] = [makeMeter("score"), makeMeter("weight")];
    const end = candidate.finish_reason === "stop" ? null : describeEnd(candidate);
    const length = candidate.num_tokens === null ? "" : plural(candidate.num_tokens, "token");
    const facts = [length, end, ...notes].filter(Boolean).join(", ");
    const element = make(
      "li", { class: isChosen ? "card is-chosen" : "card", "data-index": index },
      make("div", { class: "card-head" }, make("h3", {}, open), make("span", { class: "badges" }, chosen, now)),
      text,
      make("div", { class: "meters" }, score.row, weight.row),
      make("p", { class: "hint" }, facts),
    );
    return { element, now, score, weight };
  }

  /** Set the weights, the base model's share being 1 / k. */
  weigh(weights, likeliest) {
    for (const [index, { element, now, weight }] of this.cards.entries()) {
      element.dataset.weight = weights[index];
      weight.meter.style.setProperty("--fill", weights[index]);
      weight.meter.style.setProperty("--base", 1 / weights.length);
      weight.value.textContent = formatPercent(weights[index]);
      now.hidden = !likeliest.includes(index);
    }
  }

  /** Order the cards, and return the order of their indices. */
  sort(by) {
    const order = this.cards.map((_, index) => index);
    // A sort is stable: equal scores stay in the order of their indices.
    if (by === "score") order.sort((one, other) => this.scores[other] - this.scores[one]);
    this.list.replaceChildren(...order.map((index) => this.cards[index].element));
    return order;
  }
}

/** Say why a candidate ended. */
export function describeEnd({ finish_reason, stop_reason }) {
  if (finish_reason === "length") return "cut at max tokens";
  if (finish_reason !== "stop") return finish_reason ?? "not finished";
  return typeof stop_reason === "string" ? `at the stop string ${JSON.stringify(stop_reason)}` : "by itself";
}

function describeVote(vote, index) {
  if (!vote) return null;
  const says = vote.answers[vote.classes[index]];
  return says === undefined ? "no answer" : `votes for ${says}`;
}

function makeMeter(name) {
  const meter = make("span", { class: `meter ${name}` });
  const value = make("span", { class: "value" });
  return { row: make("div", { class: "meter-row" }, make("span", { class: "hint" }, name), meter, value), meter, value };
}
