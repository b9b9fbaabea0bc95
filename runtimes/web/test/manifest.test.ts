import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { canonicalWithout } from "../src/canonical-json.js";
import { readManifest } from "../src/manifest.js";

/** A manifest's text, with its digest made by Node and the canonical form written out by hand. */
function written(canonical: string, rest = ""): string {
  const digest = createHash("sha256").update(canonical).digest("hex");
  return canonical.slice(0, -1) + `${rest}, "manifest_sha256": "${digest}"}`;
}

const SOUND =
  '{"files":[],"format_version":1,"graphs":{"prefill":{"file":"a","inputs":[],"outputs":[]}},"task":"text-generation"}';

describe("canonicalWithout", () => {
  it.each([
    [
      '{"b": 1, "a": [1e-08, -2.50, true, null, {}], "x": {"z": [], "y": ""}}',
      '{"a":[1e-08,-2.50,true,null,{}],"b":1,"x":{"y":"","z":[]}}',
    ],
    ['{ "x" : 1 , "y" : {"x": 2} }', '{"x":1,"y":{"x":2}}'],
    [
      '{"gone": [{"a": 1}], "kept": "a \\"b\\" \\\\ \\u00e9 \\u0001 \\n,:[]{}"}',
      '{"kept":"a \\"b\\" \\\\ é \\u0001 \\n,:[]{}"}',
    ],
    ['{"\\uffff": 1, "\\ud83d\\ude00": 2, "a": 3}', '{"a":3,"\uffff":1,"\u{1f600}":2}'], // by code point, as Python
    ["{}", "{}"],
  ])("writes %s as Python does", (text, canonical) => {
    expect(canonicalWithout(text, "gone")).toBe(canonical);
  });

  it("refuses what is no JSON", () => {
    expect(() => canonicalWithout('{"a": }', "")).toThrow(SyntaxError);
  });
});

describe("readManifest", () => {
  it("takes a sound one", async () => {
    expect((await readManifest(written(SOUND), "x")).task).toBe("text-generation");
  });

  it.each([
    ["a change", written(SOUND, ', "licence": null'), /IntegrityError.*\n?.*x was changed|x was changed/],
    ["no JSON", "<html>", /x is not JSON/],
    ["no object", "null", /x is not a manifest|x is not JSON/],
    ["no version", "{}", /x is not a manifest\n {2}found: {4}format_version undefined/],
    ["a newer format", SOUND.replace('version":1', 'version":2'), /newer helium-onnx\n.*\n.*\n {2}remedy: {3}upgrade/],
    ["another task", written(SOUND.replace("text-generation", "embedding")), /does not generate text/],
    ["no graph", written(SOUND.replace("prefill", "model")), /graphs model/],
  ])("refuses %s", async (_, text, message) => {
    await expect(readManifest(text, "x")).rejects.toThrow(message);
  });
});
