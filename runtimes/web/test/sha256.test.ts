import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { portableSha256, sha256 } from "../src/sha256.js";

describe("SHA-256", () => {
  it.each([0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 1000, 100_003])("is Node's for %i bytes", async (size) => {
    const data = Uint8Array.from({ length: size }, (_, i) => (i * 7 + (i >> 8)) & 255);
    const wanted = createHash("sha256").update(data).digest("hex");
    expect(portableSha256(data)).toBe(wanted);
    expect(await sha256(data)).toBe(wanted);
  });
});
