import { fileURLToPath } from "node:url";
import { chromium, type Browser } from "playwright-core";

export const DIST = fileURLToPath(new URL("../dist", import.meta.url));
const CHROMIUM = process.env["HELIUM_CHROMIUM"] ?? "/usr/bin/chromium";

/** What Python gives. */
export interface Expected {
  prompt: string;
  options: Record<string, number | string[] | boolean>;
  text: string;
  token_ids: number[];
  finish_reason: string;
  stop: string | null;
  prompt_tokens: number;
}

export async function launch(args: string[] = []): Promise<Browser> {
  return await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", ...args] });
}

/** Python's options under this package's names. */
export function inCamelCase(options: Expected["options"]): Record<string, unknown> {
  const camel = (name: string): string => name.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase());
  return Object.fromEntries(Object.entries(options).map(([name, value]) => [camel(name), value]));
}
