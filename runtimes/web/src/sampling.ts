/**
 * From logits to a token: what `helium_onnx/generation/sampling.py` states, repeated in float64, so that the same seed
 * gives the same tokens as in Python. The order of every sum is part of that statement.
 */
import { HeliumError } from "./errors.js";

const MASK = (1n << 64n) - 1n;

/** How the next token is chosen. Names and meanings are Python's, in camel case. */
export interface SamplingOptions {
  /** 0 is greedy: the largest logit, of equals the lowest id. */
  temperature?: number;
  /** Keep the k largest logits and those equal to the k-th; 0 keeps all. */
  topK?: number;
  /** Keep the fewest tokens, by probability, whose sum reaches it; in (0, 1]. */
  topP?: number;
  /** Keep tokens of at least this share of the largest probability; in [0, 1]. */
  minP?: number;
  /** CTRL's rule, over prompt and generated ids; 1 changes nothing. */
  repetitionPenalty?: number;
  /** 0 to 2^64 - 1 (above 2^53 as a bigint); left open, one is drawn and the result reports it. */
  seed?: number | bigint | null;
}

export interface CheckedSampling {
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  seed: bigint;
}

/** Fills in defaults. Throws a UsageError for a value outside its range. */
export function checkedSampling(options: SamplingOptions): CheckedSampling {
  const { temperature = 0, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1, seed = null } = options;
  check("temperature", temperature, temperature >= 0 && temperature < Infinity, "a finite number >= 0 (0 is greedy)");
  check("topK", topK, Number.isSafeInteger(topK) && topK >= 0, "an integer >= 0 (0 keeps all)");
  check("topP", topP, topP > 0 && topP <= 1, "a number in (0, 1] (1 keeps all)");
  check("minP", minP, minP >= 0 && minP <= 1, "a number in [0, 1] (0 keeps all)");
  check(
    "repetitionPenalty",
    repetitionPenalty,
    repetitionPenalty > 0 && repetitionPenalty < Infinity,
    "a finite number > 0 (1 changes nothing)",
  );
  return { temperature, topK, topP, minP, repetitionPenalty, seed: seed === null ? drawSeed() : checkedSeed(seed) };
}

function check(name: string, value: unknown, ok: boolean, expected: string): void {
  if (typeof value !== "number" || !ok) {
    throw new HeliumError("UsageError", `${name} has a value that it cannot have`, { found: shown(value), expected });
  }
}

function checkedSeed(seed: unknown): bigint {
  const whole = typeof seed === "bigint" || Number.isSafeInteger(seed);
  if (!whole || BigInt(seed as number) < 0n || BigInt(seed as number) > MASK) {
    throw new HeliumError("UsageError", "seed has a value that it cannot have", {
      found: shown(seed),
      expected: "an integer from 0 to 2^64 - 1 (a bigint above 2^53), or null",
    });
  }
  return BigInt(seed as number);
}

function shown(value: unknown): string {
  return typeof value === "string" ? JSON.stringify(value) : String(value);
}

/** A seed from the operating system, below 2^53. */
export function drawSeed(): bigint {
  const words = crypto.getRandomValues(new Uint32Array(2));
  return (BigInt(words[0]! & 0x1fffff) << 32n) | BigInt(words[1]!);
}

/** A stream of uniforms in [0, 1): SplitMix64, the same on every platform. */
export class SplitMix64 {
  #state: bigint;

  constructor(seed: bigint, row = 0) {
    this.#state = (seed + mix(BigInt(row))) & MASK;
  }

  nextUint64(): bigint {
    this.#state = (this.#state + 0x9e3779b97f4a7c15n) & MASK;
    return mix(this.#state);
  }

  /** The upper 53 bits as a float64 in [0, 1). */
  nextUniform(): number {
    return Number(this.nextUint64() >> 11n) * 2 ** -53;
  }
}

function mix(value: bigint): bigint {
  value = ((value ^ (value >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  value = ((value ^ (value >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return value ^ (value >> 31n);
}

/** Chooses the tokens of one row. */
export class Sampler {
  readonly options: CheckedSampling;
  readonly #random: SplitMix64;

  constructor(options: CheckedSampling, row = 0) {
    this.options = options;
    this.#random = new SplitMix64(options.seed, row);
  }

  /**
   * The next token. `logits` is [vocab_size], `historyIds` the prompt and what was generated so far.
   * Throws a GenerationError where a logit is NaN or +inf, or all are -inf.
   */
  sample(logits: Float32Array, historyIds: readonly number[]): number {
    const scores = this.#penalized(logits, historyIds);
    const best = largest(scores);
    if (this.options.temperature === 0) return best;
    return this.#draw(...this.#kept(scores, scores[best]!));
  }

  #penalized(logits: Float32Array, historyIds: readonly number[]): Float32Array | Float64Array {
    const penalty = this.options.repetitionPenalty;
    if (penalty === 1 || historyIds.length === 0) return logits;
    const scores = Float64Array.from(logits);
    for (const id of historyIds) {
      const known = logits[id]!; // from the logits: an id that occurs twice is penalized once
      scores[id] = known < 0 ? known * penalty : known / penalty;
    }
    return scores;
  }

  /** Ids, ascending, that pass top-k, top-p and min-p, and their weights; the largest weight is 1. */
  #kept(scores: Float32Array | Float64Array, peak: number): [Int32Array, Float64Array] {
    const { temperature, topK, topP, minP } = this.options;
    let ids = Int32Array.from(scores.keys());
    if (topK > 0 && topK < scores.length) {
      const limit = Float64Array.from(scores).sort()[scores.length - topK]!;
      ids = ids.filter((id) => scores[id]! >= limit);
    }
    let weights = Float64Array.from(ids, (id) => {
      const difference = scores[id]! - peak;
      return Math.exp(temperature === 1 ? difference : difference / temperature);
    });
    const keep = (kept: Int32Array): void => {
      ids = kept.map((index) => ids[index]!);
      weights = Float64Array.from(kept, (index) => weights[index]!);
    };
    if (topP < 1) {
      const mass = topP * sum(weights);
      const [ranks, running] = rankedUntil(weights, mass);
      // A token stays if the likelier ones sum to less than the mass; so the best does.
      let count = 0;
      while (count < running.length && running[count]! < mass) count++;
      keep(ranks.slice(0, count + 1).sort());
    }
    if (minP > 0) keep(Int32Array.from(weights.keys()).filter((index) => weights[index]! >= minP));
    return [ids, weights];
  }

  #draw(ids: Int32Array, weights: Float64Array): number {
    const target = this.#random.nextUniform() * sum(weights);
    const [ranks, running] = rankedUntil(weights, target);
    let chosen = 0;
    // Summed in another order, the running sum may end one rounding below the target: then it is the last.
    while (chosen < ranks.length - 1 && running[chosen]! <= target) chosen++;
    return ids[ranks[chosen]!]!;
  }
}

/** The index of the maximum, of equals the lowest. Throws where the logits are not usable. */
function largest(scores: Float32Array | Float64Array): number {
  let best = 0;
  let nans = 0;
  for (let id = 0; id < scores.length; id++) {
    const score = scores[id]!;
    if (score > scores[best]!) best = id;
    else if (score !== score) nans++;
  }
  if (nans > 0 || scores.length === 0 || !Number.isFinite(scores[best])) {
    throw new HeliumError("GenerationError", "The model gave no usable logits", {
      found: `${nans} NaN among ${scores.length}, maximum ${nans > 0 ? "NaN" : scores[best]}`,
      expected: "finite numbers",
      remedy: "check the bundle with helium-onnx verify",
    });
  }
  return best;
}

/** From the left, one by one: the order is part of the rule. */
function sum(weights: Float64Array): number {
  let total = 0;
  for (const weight of weights) total += weight;
  return total;
}

/**
 * The likeliest weights above 0: indices by (weight descending, index ascending) and their running sum, as many as it
 * takes for the sum to exceed `mass`, or all. What is at least as large as a threshold is a beginning of the full order
 * whatever the threshold, and a full sort of 48000 weights at each token would be felt.
 */
function rankedUntil(weights: Float64Array, mass: number): [Int32Array, Float64Array] {
  const certain = (sum(weights) - mass) / weights.length;
  for (const threshold of [16 * certain, certain, 0]) {
    const all = Int32Array.from(weights.keys());
    const head = all.filter(threshold > 0 ? (i) => weights[i]! >= threshold : (i) => weights[i]! > 0);
    head.sort((a, b) => weights[b]! - weights[a]! || a - b);
    const running = new Float64Array(head.length);
    let total = 0;
    for (let rank = 0; rank < head.length; rank++) running[rank] = total += weights[head[rank]!]!;
    if (threshold <= 0 || total > mass) return [head, running];
  }
  throw new Error("unreachable: the threshold 0 returns");
}
