import { describe, expect, it } from "vitest";
import { HeliumError } from "../src/errors.js";
import { checkedSampling, Sampler, SplitMix64 } from "../src/sampling.js";
import { readText } from "./files.js";

interface Shape {
  seed: number;
  size: number;
  scale: number;
  levels: number;
  masked: number;
}
interface Case {
  options: Record<string, number> & { seed: string };
  logits: Shape;
  prompt_ids: number[];
  tokens: number[];
}

/** What tests/vectors/write.py makes. */
function logits(seed: number, shape: Shape): Float32Array {
  const stream = new SplitMix64(BigInt(seed));
  return Float32Array.from({ length: shape.size }, (_, index) => {
    let share = Number(stream.nextUint64() >> 40n) * 2 ** -24;
    if (shape.levels) share = Math.floor(share * shape.levels) / shape.levels;
    return shape.masked && index % shape.masked === 0 ? -Infinity : (share - 0.5) * shape.scale;
  });
}

const cases: Case[] = JSON.parse(readText("tests/vectors/sampling.json"));

describe("Sampler", () => {
  it.each(cases.map((one, index) => [index, one] as const))("gives Python's tokens (%i)", (_, { options, ...rest }) => {
    const { temperature, top_k, top_p, min_p, repetition_penalty } = options;
    const sampler = new Sampler(
      checkedSampling({
        ...(temperature === undefined ? {} : { temperature }),
        ...(top_k === undefined ? {} : { topK: top_k }),
        ...(top_p === undefined ? {} : { topP: top_p }),
        ...(min_p === undefined ? {} : { minP: min_p }),
        ...(repetition_penalty === undefined ? {} : { repetitionPenalty: repetition_penalty }),
        seed: BigInt(options.seed),
      }),
    );
    const history = [...rest.prompt_ids];
    for (let step = 0; step < rest.tokens.length; step++) {
      history.push(sampler.sample(logits(rest.logits.seed + step, rest.logits), history));
    }
    expect(history.slice(rest.prompt_ids.length)).toEqual(rest.tokens);
  });

  it("has vectors of which many are drawn, not largest", () => {
    const drawn = cases.filter((one) => {
      const greedy = new Sampler(checkedSampling({}));
      return one.tokens[0] !== greedy.sample(logits(one.logits.seed, one.logits), []);
    });
    expect(drawn.length).toBeGreaterThan(30);
  });

  it.each([[NaN], [Infinity]])("refuses logits with %s", (value) => {
    const bad = Float32Array.of(0, value, 1);
    for (const temperature of [0, 1]) {
      expect(() => new Sampler(checkedSampling({ temperature })).sample(bad, [])).toThrow(/no usable logits/);
    }
  });

  it("refuses logits that are all masked", () => {
    expect(() => new Sampler(checkedSampling({})).sample(new Float32Array(3).fill(-Infinity), [])).toThrow(/usable/);
  });
});

describe("checkedSampling", () => {
  it.each([
    [{ temperature: -1 }],
    [{ temperature: NaN }],
    [{ temperature: Infinity }],
    [{ topK: -1 }],
    [{ topK: 1.5 }],
    [{ topP: 0 }],
    [{ topP: 1.1 }],
    [{ minP: -0.1 }],
    [{ repetitionPenalty: 0 }],
    [{ seed: -1 }],
    [{ seed: 2 ** 60 }],
    [{ seed: 1n << 64n }],
    [{ temperature: "0.7" as unknown as number }],
  ])("refuses %o", (options) => {
    expect(() => checkedSampling(options)).toThrow(HeliumError);
  });

  it("draws a seed that a double holds", () => {
    const { seed } = checkedSampling({});
    expect(seed < 1n << 53n).toBe(true);
    expect(checkedSampling({}).seed).not.toBe(seed);
  });
});
