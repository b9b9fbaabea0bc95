import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { Tokenizer } from "../src/tokenizer.js";
import { readText } from "./files.js";

const json = readText("samples/helium-docs-7m/tokenizer.json");
const config = JSON.parse(readText("samples/helium-docs-7m/config.json"));
const tokenizer = new Tokenizer(json, config);
const vectors: {
  texts: { text: string; ids: number[] }[];
  special: { text: string; ids: number[] }[];
  lines: string[];
  streams: { prompt_ids: number[]; ids: number[]; pieces: string[] }[];
} = JSON.parse(readText("tests/vectors/tokenizer.json"));

describe("Tokenizer", () => {
  it.each(vectors.texts)("encodes $text as Python does", ({ text, ids }) => {
    expect(tokenizer.encode(text)).toEqual(ids);
  });

  it.each(vectors.special)("encodes $text with control tokens as Python does", ({ text, ids }) => {
    expect(tokenizer.encode(text, true)).toEqual(ids);
  });

  it("encodes every evaluation text as Python does", () => {
    const lines = readText("benchmarks/data/valid.jsonl").trimEnd().split("\n");
    const digests = lines.map((line) => {
      const ids = Int32Array.from(tokenizer.encode(JSON.parse(line).text));
      return createHash("sha256").update(new Uint8Array(ids.buffer)).digest("hex");
    });
    expect(digests).toEqual(vectors.lines);
  });

  it("reads ids as text, piece by piece, as Python does", () => {
    for (const { prompt_ids, ids, pieces } of vectors.streams) {
      const stream = tokenizer.stream(prompt_ids);
      expect(ids.map((id) => stream.push(id))).toEqual(pieces);
    }
  });

  it("refuses what is no text, and half a character", () => {
    expect(() => tokenizer.encode(7 as unknown as string)).toThrow(/no text/);
    expect(() => tokenizer.encode("a\ud83d")).toThrow(/U\+D83D at position 1/);
    expect(() => tokenizer.encode("\ude00a")).toThrow(/U\+DE00 at position 0/);
  });

  it("refuses an id outside the vocabulary", () => {
    expect(() => tokenizer.tokenBytes(6000)).toThrow(/outside the vocabulary/);
  });

  it("refuses a tokenizer that is not Helium's", () => {
    const spec = JSON.parse(json);
    const made =
      (change: object): (() => Tokenizer) =>
      () =>
        new Tokenizer(JSON.stringify({ ...spec, ...change }), config);
    expect(made({ model: { type: "BPE" } })).toThrow(/a BPE model/);
    expect(made({ normalizer: { type: "NFKC" } })).toThrow(/normalizer NFKC/);
    expect(made({ pre_tokenizer: { type: "ByteLevel" } })).toThrow(/pre-tokenizer ByteLevel/);
    expect(made({ model: null })).toThrow(/malformed/);
    expect(() => new Tokenizer("{", config)).toThrow(/malformed/);
    expect(() => new Tokenizer(json, { ...config, vocab_size: 6001 })).toThrow(/6000 ids/);
  });
});
