import { describe, expect, it } from "vitest";
import { StopStrings } from "../src/stopping.js";
import { readText } from "./files.js";

const cases: { stop: string[]; pieces: string[]; shown: string[]; match: string | null }[] = JSON.parse(
  readText("tests/vectors/stopping.json"),
);

describe("StopStrings", () => {
  it.each(cases)("reads $pieces until $stop as Python does", ({ stop, pieces, shown, match }) => {
    const reader = new StopStrings(stop);
    expect([...pieces.map((piece) => reader.push(piece)), reader.finish()]).toEqual(shown);
    expect(reader.match).toBe(match);
  });

  it("refuses an empty stop string", () => {
    expect(() => new StopStrings(["a", ""])).toThrow(/stop string cannot be used/);
  });
});
