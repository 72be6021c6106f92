// The choice among candidates as the server makes it, in numbers. Knows no page and no requests.

// The slider: 0, then 20 steps a decade from 0.01 to 10, then infinity.
const STEPS_PER_DECADE = 20;
const NUM_STEPS = 3 * STEPS_PER_DECADE;
export const LAST_POSITION = NUM_STEPS + 2;

// JSON has no infinity. No score is large enough to be told from 0 after division by this.
const SENT_AS_INFINITY = 1e30;

export function betaAt(position) {
  if (position <= 0) return 0;
  if (position >= LAST_POSITION) return Infinity;
  // At 20 steps a decade two digits are enough to tell them apart, and 0.1, 0.25 and 0.5 are exact.
  return Number((0.01 * 10 ** ((position - 1) / STEPS_PER_DECADE)).toPrecision(2));
}

export function positionOf(beta) {
  if (beta <= 0) return 0;
  if (beta === Infinity) return LAST_POSITION;
  const position = 1 + Math.round(STEPS_PER_DECADE * Math.log10(beta / 0.01));
  return Math.min(Math.max(position, 1), LAST_POSITION - 1);
}

export const betaToSend = (beta) => (beta === Infinity ? SENT_AS_INFINITY : beta);

/** Read a reply's beta: null is what the server says for an infinite one. */
export const betaReceived = (beta) => (beta === null || beta >= SENT_AS_INFINITY ? Infinity : beta);

/** Return softmax(scores / beta). At beta 0 the best share the whole, as on the server. */
export function weigh(scores, beta) {
  const best = Math.max(...scores);
  const parts = scores.map((score) => {
    if (score === best) return 1;
    return beta === 0 ? 0 : Math.exp((score - best) / beta);
  });
  const whole = sum(parts);
  return parts.map((part) => part / whole);
}

// Of support that counts, as on the server: classes of the same scores tie.
const DIGITS = 12;

/**
 * Return the weights of a vote: each class is drawn by softmax(S / beta), S being log sum exp(score),
 * and its best candidate is the answer. `classes` has null for a candidate without an answer; where
 * nobody has one the scores decide.
 */
export function weighVote(scores, classes, beta) {
  const names = [...new Set(classes)].filter((name) => name !== null);
  if (names.length === 0) return weigh(scores, beta);
  const members = names.map((name) => scores.flatMap((_, index) => (classes[index] === name ? [index] : [])));
  const bests = members.map((inside) => Math.max(...inside.map((index) => scores[index])));
  const support = members.map((inside, at) => {
    const parts = inside.map((index) => Math.exp(scores[index] - bests[at]));
    return bests[at] + Number(Math.log(sum(parts)).toFixed(DIGITS));
  });
  const shares = weigh(support, beta);
  const weights = scores.map(() => 0);
  for (const [at, inside] of members.entries()) {
    const tied = inside.filter((index) => scores[index] === bests[at]);
    for (const index of tied) weights[index] = shares[at] / tied.length;
  }
  return weights;
}

/**
 * Say what there is to say of weights: `kl` is log k - H in nats, `effective` is exp(H),
 * `likeliest` the indices of the largest weight, none of them where all are equal.
 */
export function assess(scores, weights) {
  const entropy = -sum(weights.map((weight) => (weight > 0 ? weight * Math.log(weight) : 0)));
  const largest = Math.max(...weights);
  const likeliest = weights.flatMap((weight, index) => (weight >= largest - 1e-12 ? [index] : []));
  return {
    // Rounding may leave either a hair outside its range.
    kl: Math.max(Math.log(scores.length) - entropy, 0),
    effective: Math.min(Math.exp(entropy), scores.length),
    expected: sum(scores.map((score, index) => score * weights[index])),
    mean: sum(scores) / scores.length,
    likeliest: likeliest.length === scores.length && scores.length > 1 ? [] : likeliest,
  };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
