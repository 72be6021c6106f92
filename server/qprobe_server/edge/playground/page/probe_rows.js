// The choice of a probe, or of several with weights. Knows the cards of /v1/probes, sends nothing.

import { byId, make } from "./elements.js";

// The server's limit for a mix.
const MAX_ROWS = 16;

export class ProbeRows {
  /** `onChange` is called whenever another probe or mix is chosen. */
  constructor(onChange) {
    this.cards = [];
    this.list = byId("probe-rows");
    this.onChange = onChange;
    byId("add-probe").addEventListener("click", () => this.add());
  }

  /** Take a new list of probes; what was chosen stays chosen if it is still there. */
  load(cards) {
    const kept = this.rows().filter(({ name }) => cards.some((card) => card.id === name));
    this.cards = cards;
    this.list.replaceChildren();
    const rows = kept.length > 0 ? kept : cards.slice(0, 1).map((card) => ({ name: card.id, weight: 1 }));
    for (const { name, weight } of rows) this.append(name, Number.isFinite(weight) ? weight : 1);
    this.update();
  }

  /** Return the field `q_probe.probe`: a name, or weights by name. */
  value() {
    const rows = this.rows();
    if (rows.length === 1) return rows[0].name;
    return Object.fromEntries(rows.map(({ name, weight }) => [name, weight]));
  }

  /** Return the card of the first probe, whose recommendations are taken. */
  first() {
    return this.cards.find((card) => card.id === this.rows()[0]?.name);
  }

  rows() {
    return [...this.list.children].map((row) => ({
      name: row.querySelector("select").value,
      weight: row.querySelector("input").valueAsNumber,
    }));
  }

  add() {
    const used = this.rows().map(({ name }) => name);
    const free = this.cards.find((card) => !used.includes(card.id));
    if (free === undefined) return;
    this.append(free.id, 1);
    this.update();
    this.list.lastElementChild.querySelector("select").focus();
  }

  append(name, weight) {
    const select = make("select", { "aria-label": "Probe" });
    select.append(...this.cards.map((card) => make("option", { value: card.id }, card.id)));
    select.value = name;
    select.addEventListener("change", () => this.update());
    const input = make("input", {
      type: "number", step: "any", value: weight, required: "", inputmode: "decimal", "aria-label": "Weight",
    });
    const remove = make("button", { type: "button", class: "quiet", "aria-label": "Remove this probe" }, "×");
    const row = make("li", {}, select, input, remove);
    remove.addEventListener("click", () => {
      row.remove();
      this.update();
      this.list.lastElementChild.querySelector("select").focus();
    });
    this.list.append(row);
  }

  update() {
    const rows = [...this.list.children];
    const chosen = rows.map((row) => row.querySelector("select").value);
    for (const [index, row] of rows.entries()) {
      for (const option of row.querySelectorAll("option")) {
        option.disabled = option.value !== chosen[index] && chosen.includes(option.value);
      }
      row.querySelector("input").hidden = rows.length === 1;
      row.querySelector("input").disabled = rows.length === 1;
      row.querySelector("button").hidden = rows.length === 1;
    }
    byId("add-probe").hidden = rows.length === 0 || rows.length >= Math.min(this.cards.length, MAX_ROWS);
    byId("probe-facts").textContent = this.describe(rows.length);
    this.onChange();
  }

  describe(numRows) {
    if (numRows === 0) return "No probe is loaded.";
    if (numRows > 1) return "The scores of a mix are weighted sums.";
    const { terms, confidence, objective } = this.first();
    const sure = confidence ? "; tells how sure it is" : "";
    return `Reads ${terms.map(describeTerm).join(" + ")}; trained by ${objective}${sure}`;
  }
}

function describeTerm({ kind, layer, pooling, window, names }) {
  if (kind === "numbers") return names.join(", ").replaceAll("_", " ");
  if (kind === "gate") return `layer ${layer}, gated`;
  if (pooling === "max") return `layer ${layer}, largest mean of ${window} tokens`;
  return `layer ${layer}, ${pooling}${window ? ` of the first ${window} tokens` : ""}`;
}
