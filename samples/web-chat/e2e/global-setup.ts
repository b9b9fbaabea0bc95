/** Exports the model that the pages of all files load, unless HELIUM_WEB_CHAT_MODEL names a bundle. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { TestProject } from "vitest/node";

declare module "vitest" {
  export interface ProvidedContext {
    model: string;
  }
}

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
const PYTHON = process.env["HELIUM_PYTHON"] ?? here("../../../.venv/bin/python");

export default function setup(project: TestProject): (() => void) | undefined {
  if (!existsSync(here("../dist/sw.js"))) throw new Error("build the page first: npm run build");
  const given = process.env["HELIUM_WEB_CHAT_MODEL"];
  if (given !== undefined) return void project.provide("model", given);
  const folder = mkdtempSync(join(tmpdir(), "helium-web-chat-"));
  const model = join(folder, "model");
  const command = ["-m", "helium_onnx", "export", here("../../helium-docs-7m"), model, "-r", "cpu-fp32", "-q"];
  execFileSync(PYTHON, command, { stdio: "inherit" });
  project.provide("model", model);
  return () => rmSync(folder, { recursive: true });
}
