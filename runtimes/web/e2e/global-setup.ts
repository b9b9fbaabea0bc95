/** Exports the bundles once for all files, and asks Python for its tokens. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { TestProject } from "vitest/node";
import type { Expected } from "./setup.js";

declare module "vitest" {
  export interface ProvidedContext {
    bundles: string;
    expected: Record<string, Record<string, Expected>>;
  }
}

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
const PYTHON = process.env["HELIUM_PYTHON"] ?? here("../../../.venv/bin/python");

export default function setup(project: TestProject): () => void {
  if (!existsSync(here("../dist/index.js"))) throw new Error("build the package first: npm run build");
  // Exports are made anew in each run, unless a folder is named that keeps them.
  const kept = process.env["HELIUM_WEB_BUNDLES"];
  const bundles = kept ?? mkdtempSync(join(tmpdir(), "helium-onnx-web-"));
  const cleanUp = (): void => {
    if (kept === undefined) rmSync(bundles, { recursive: true });
  };
  try {
    execFileSync(PYTHON, [here("./reference.py"), bundles], { stdio: "inherit" });
    project.provide("bundles", bundles);
    project.provide("expected", JSON.parse(readFileSync(join(bundles, "reference.json"), "utf-8")));
  } catch (error) {
    cleanUp();
    throw error;
  }
  return cleanUp;
}
