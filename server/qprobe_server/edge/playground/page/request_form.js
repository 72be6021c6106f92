// The request as its form has it. Knows the fields of the API, sends nothing.

import { betaToSend } from "./choice.js";
import { byId, make } from "./elements.js";

const OPTIONAL = ["max_tokens", "temperature", "seed"];

// Where a field of the API stands on the page.
const FIELDS = {
  messages: "prompt",
  model: "model",
  max_tokens: "max_tokens",
  max_completion_tokens: "max_tokens",
  temperature: "temperature",
  seed: "seed",
  "q_probe.probe": "probe",
  "q_probe.k": "k",
  "q_probe.beta": "beta",
  "q_probe.vote": "vote",
};

/** Offer the models that a probe can stand behind: an alias is a model and a probe already. */
export function loadModels(models, probes) {
  const isAlias = ({ id, parent }) => Boolean(parent) && probes.some((probe) => id === `${parent}:${probe.id}`);
  const select = byId("model");
  const before = select.value;
  const names = models.filter((model) => !isAlias(model)).map((model) => model.id);
  select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (names.includes(before)) select.value = before;
}

/** Return the body for /v1/chat/completions. Fields left empty are left to the server. */
export function readRequest(probe, beta) {
  const messages = [{ role: "user", content: byId("prompt").value }];
  const system = byId("system").value;
  if (system.trim()) messages.unshift({ role: "system", content: system });
  const request = { model: byId("model").value, messages };
  for (const name of OPTIONAL) {
    if (byId(name).value !== "") request[name] = Number(byId(name).value);
  }
  // Whatever the server's own schedule: the page weighs every candidate, so each has to be whole.
  request.q_probe = {
    probe,
    k: Number(byId("k").value),
    beta: betaToSend(beta),
    schedule: "off",
    return_token_scores: true,
  };
  if (byId("vote").value !== "") request.q_probe.vote = { by: byId("vote").value };
  return request;
}

/** Mark the field that the server complains of; null marks none. */
export function markField(param) {
  const name = Object.keys(FIELDS).find((field) => param === field || param?.startsWith(`${field}.`));
  for (const id of new Set(Object.values(FIELDS))) {
    if (name !== undefined && FIELDS[name] === id) byId(id).setAttribute("aria-invalid", "true");
    else byId(id).removeAttribute("aria-invalid");
  }
}
