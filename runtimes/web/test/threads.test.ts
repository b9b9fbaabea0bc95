import { describe, expect, it } from "vitest";
import { chooseThreads } from "../src/threads.js";

describe("chooseThreads", () => {
  it.each([
    [null, true, 4, 4, false],
    [null, true, 64, 8, false],
    [null, true, 1, 1, true],
    [3, true, 2, 3, false],
    [1, false, 8, 1, false],
    [4, false, 8, 1, true],
    [null, false, 8, 1, true],
  ])("asked %s, isolated %s, %i cores: %i", (asked, isolated, cores, threads, says) => {
    const chosen = chooseThreads(asked, { isolated, cores });
    expect(chosen.threads).toBe(threads);
    expect(chosen.reason !== null).toBe(says);
  });

  it.each([0, -1, 1.5])("refuses %d", (asked) => {
    expect(() => chooseThreads(asked, { isolated: true, cores: 2 })).toThrow(/threads has a value/);
  });
});
