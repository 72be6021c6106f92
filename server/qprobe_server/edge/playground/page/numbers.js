// Numbers as the page shows them.

const MINUS = "\u2212";

export function formatScore(value, digits = 2) {
  const text = value.toFixed(digits);
  return (Number(text) < 0 ? text : text.replace("-", "")).replace("-", MINUS);
}

/** Return how many digits tell scores of this range apart. */
export function digitsFor(scores) {
  const spread = Math.max(...scores) - Math.min(...scores);
  return spread > 0 ? Math.min(Math.max(2, 2 - Math.floor(Math.log10(spread))), 6) : 2;
}

export function formatPercent(weight) {
  if (weight > 0 && weight < 0.0005) return "<0.1 %";
  if (weight < 1 && weight >= 0.9995) return ">99.9 %";
  return `${(100 * weight).toFixed(1)} %`;
}

export function formatBeta(beta) {
  return beta === Infinity ? "∞" : String(beta);
}

export const formatCount = (count) => count.toLocaleString("en");

export const formatSeconds = (milliseconds) => `${(milliseconds / 1000).toFixed(1)} s`;

export const plural = (count, word) => `${formatCount(count)} ${word}${count === 1 ? "" : "s"}`;
