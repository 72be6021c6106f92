// The page: what is shown when, and what its controls do. The rest is in the modules beside it.

import { ApiError, ask } from "./api.js";
import { Cards } from "./cards.js";
import { assess, betaAt, betaReceived, LAST_POSITION, positionOf, weigh, weighVote } from "./choice.js";
import { copy } from "./clipboard.js";
import { Detail } from "./detail.js";
import { byId, fillFigures, make } from "./elements.js";
import { digitsFor, formatBeta, formatCount, formatPercent, formatScore, formatSeconds, plural } from "./numbers.js";
import { ProbeRows } from "./probe_rows.js";
import { loadModels, markField, readRequest } from "./request_form.js";
import { writeCurl, writePython } from "./snippets.js";
import { connectTheme } from "./theme_toggle.js";

const KEY = "qprobe-api-key";

// `beta` is that of the slider; `run` is what the cards show, `choice` its weights of now, and
// `abort` ends the request that is running.
const state = { beta: 0.1, run: null, choice: null, abort: null, connections: 0 };
const touched = new Set();
const cards = new Cards((index) => detail.open(state.run.result, index, { ...state.choice, order: state.order }));
const detail = new Detail();
const probes = new ProbeRows(recommend);

const say = (text) => {
  byId("status").textContent = text;
};

/** Read the models and probes, with the key that stands in its field. */
async function connect() {
  const attempt = (state.connections += 1);
  const key = byId("key").value.trim();
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  setConnection("Connecting …", "connecting");
  try {
    // One after the other: a wrong key is then refused, and logged, once.
    const models = await ask("v1/models", { key });
    const listed = await ask("v1/probes", { key });
    // The key may have been changed meanwhile, and the later answer have come first.
    if (attempt !== state.connections) return false;
    loadModels(models.data, listed.data);
    probes.load(listed.data);
    setConnection(`Connected, ${plural(listed.data.length, "probe")}`, "good");
    showError(null);
    return true;
  } catch (error) {
    if (attempt !== state.connections) return false;
    if (error.status !== 401) setConnection("Not connected", "bad");
    showError(error);
    return false;
  }
}

function setConnection(text, kind) {
  byId("connection").textContent = text;
  byId("connection").dataset.kind = kind;
}

/** Take what the probe recommends, except where the user has set something. */
function recommend() {
  const card = probes.first();
  if (card === undefined) return;
  if (card.k && !touched.has("k")) byId("k").value = card.k;
  if (typeof card.beta === "number" && !touched.has("beta")) setBeta(card.beta);
}

function setBeta(beta) {
  state.beta = beta;
  const slider = byId("beta");
  slider.value = positionOf(beta);
  const meaning = { 0: ", best only", Infinity: ", base model" }[beta] ?? "";
  slider.setAttribute("aria-valuetext", (beta === Infinity ? "infinite" : String(beta)) + meaning);
  byId("beta-value").textContent = formatBeta(beta);
  reweigh();
}

/** Weigh the candidates by the slider's beta. Sends nothing. */
function reweigh() {
  const { run } = state;
  byId("figures").hidden = run === null;
  byId("beta-reset").hidden = run === null || run.beta === state.beta;
  if (run === null) return;
  const { scores, selected, vote } = run.result;
  const weights = vote ? weighVote(scores, vote.classes, state.beta) : weigh(scores, state.beta);
  const { kl, effective, expected, mean, likeliest } = assess(scores, weights);
  state.choice = { weights, likeliest };
  cards.weigh(weights, likeliest);
  byId("beta-reset").textContent = `Back to ${formatBeta(run.beta)}`;
  const digits = digitsFor(scores);
  const share = likeliest.length > 0 ? formatPercent(weights[likeliest[0]]) : "";
  fillFigures(byId("figures"), [
    ["Chosen by the server", selected.join(", "), make("small", {}, formatPercent(weights[selected[0]]))],
    ["Most probable now", likeliest.join(", ") || "all alike", make("small", {}, share)],
    vote
      ? ["Different answers", String(vote.weights.length), make("small", {}, `of ${scores.length} candidates`)]
      : ["KL to the base model", kl.toFixed(2), make("small", {}, `of ${Math.log(scores.length).toFixed(2)} nats`)],
    ["Effective candidates", effective.toFixed(1), make("small", {}, `of ${scores.length}`)],
    ["Expected score", formatScore(expected, digits), make("small", {}, `mean ${formatScore(mean, digits)}`)],
  ]);
}

/** Send the request, and show what comes of it. */
async function send() {
  if (state.abort !== null) return;
  showError(null);
  byId("notice").hidden = true;
  if (byId("model").value === "" && !(await connect())) return;
  const request = readRequest(probes.value(), state.beta);
  const abort = new AbortController();
  const stop = showRunning(abort, request.q_probe.k);
  try {
    const key = byId("key").value.trim();
    const reply = await ask("v1/chat/completions", { key, body: request, signal: abort.signal });
    showRun(reply, stop());
  } catch (error) {
    const elapsed = stop();
    if (error.name === "AbortError") {
      showCandidates();
      byId("run-line").textContent = `Cancelled after ${formatSeconds(elapsed)}`;
      say("Cancelled");
      return;
    }
    state.run = null;
    showCandidates();
    showError(error);
  }
}

/** Show that a request is running; returns what ends that and says how long it took. */
function showRunning(abort, k) {
  state.abort = abort;
  const started = performance.now();
  const tick = () => {
    byId("run-line").textContent = `Sampling ${plural(k, "candidate")}, ${formatSeconds(performance.now() - started)}`;
  };
  byId("run").setAttribute("aria-disabled", "true");
  byId("cancel").hidden = false;
  byId("empty").hidden = byId("sort").hidden = true;
  cards.showSkeletons(k);
  tick();
  say(`Sampling ${plural(k, "candidate")}`);
  const timer = setInterval(tick, 100);
  return () => {
    clearInterval(timer);
    state.abort = null;
    byId("run").removeAttribute("aria-disabled");
    // A button that vanishes would take the focus with it.
    if (document.activeElement === byId("cancel")) byId("run").focus();
    byId("cancel").hidden = true;
    return performance.now() - started;
  };
}

function showRun(reply, elapsed) {
  const own = reply.q_probe;
  const result = own?.results?.[0];
  if (!result?.candidates) throw new ApiError("The reply has no candidates: the server ended the request early.");
  const name = typeof own.probe === "string" ? own.probe : Object.keys(own.probe).join(" + ");
  const sampled = result.sampled_tokens === null ? "" : `, ${plural(result.sampled_tokens, "token")} sampled`;
  const line = `${name}${sampled}, ${formatSeconds(elapsed)}`;
  state.run = { result, line, notice: own.notice, beta: betaReceived(result.beta === undefined ? own.beta : result.beta) };
  showCandidates();
  const chosen = result.selected[0];
  say(`Done: candidate ${chosen} of ${formatCount(result.scores.length)} was chosen`);
}

/** Show the cards of the run that there is, or that there is none. */
function showCandidates() {
  const { run } = state;
  cards.clear();
  byId("empty").hidden = run !== null;
  byId("sort").hidden = run === null;
  byId("notice").hidden = !run?.notice;
  byId("notice").textContent = run?.notice ?? "";
  byId("run-line").textContent = run?.line ?? "";
  if (run !== null) {
    cards.show(run.result);
    sort();
  }
  reweigh();
}

function sort() {
  state.order = cards.sort(document.querySelector('input[name="sort"]:checked').value);
}

function showError(error) {
  const box = byId("error");
  box.hidden = error === null;
  markField(error?.param ?? null);
  byId("key").toggleAttribute("aria-invalid", error?.status === 401 && byId("key").value.trim() !== "");
  if (error === null) {
    box.replaceChildren();
    return;
  }
  const hasKey = byId("key").value.trim() !== "";
  if (error.status === 401) setConnection(hasKey ? "Key refused" : "Key needed", hasKey ? "bad" : "waiting");
  // Whoever has just opened the page has done nothing wrong.
  box.classList.toggle("error", error.status !== 401 || hasKey);
  // Anything else is a mistake of this page, and belongs on the console.
  if (!(error instanceof ApiError)) throw error;
  const facts = [error.status ? `status ${error.status}` : null, error.param ? `field ${error.param}` : null];
  box.replaceChildren(make("strong", {}, error.message), make("span", { class: "hint" }, facts.filter(Boolean).join(", ")));
}

/** Copy the request that Run would send, once it is complete. */
function copyRequest(event, write) {
  if (byId("request").reportValidity()) copy(event.currentTarget, write(readRequest(probes.value(), state.beta)), say);
}

function listen() {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    // Enter is a change as well, if something was typed.
    if (byId("connection").dataset.kind !== "connecting") connect();
  });
  byId("key").addEventListener("change", connect);
  byId("request").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("cancel").addEventListener("click", () => state.abort?.abort());
  byId("k").addEventListener("input", () => touched.add("k"));
  byId("beta").addEventListener("input", (event) => {
    touched.add("beta");
    setBeta(betaAt(event.target.valueAsNumber));
  });
  byId("beta-reset").addEventListener("click", () => {
    setBeta(state.run.beta);
    byId("beta").focus();
  });
  byId("sort").addEventListener("change", sort);
  byId("copy-curl").addEventListener("click", (event) => copyRequest(event, writeCurl));
  byId("copy-python").addEventListener("click", (event) => copyRequest(event, writePython));
  byId("copy-text").addEventListener("click", (event) => copy(event.currentTarget, detail.text, say));
  byId("snippet-close").addEventListener("click", () => byId("snippet").close());
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") state.abort?.abort();
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    byId("request").requestSubmit();
  });
}

function start() {
  if (/Mac|iPhone|iPad/.test(navigator.platform)) byId("run-keys").textContent = "⌘ Enter";
  const slider = byId("beta");
  slider.max = LAST_POSITION;
  for (const beta of [0.1, 1]) {
    const tick = make("span", {}, formatBeta(beta));
    tick.style.setProperty("--at", positionOf(beta) / LAST_POSITION);
    byId("beta-ticks").append(tick);
  }
  byId("key").value = sessionStorage.getItem(KEY) ?? "";
  connectTheme(byId("theme"));
  listen();
  setBeta(state.beta);
  connect();
}

start();
