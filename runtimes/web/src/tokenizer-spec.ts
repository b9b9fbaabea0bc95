/** The steps that tokenizer.json lists, read for the kinds that Helium's has. Others are errors, not guessed at. */
import { HeliumError } from "./errors.js";

export type Step = (text: string) => string;

export const KNOWN = "the steps of Helium's tokenizer.json";

export function unsupported(found: string, expected: string): HeliumError {
  return new HeliumError("TokenizerError", "The tokenizer is none of Helium's", { found, expected });
}

export function steps(spec: unknown, list: string): any[] {
  const step = spec as Record<string, unknown> | null;
  if (step === null || step === undefined) return [];
  return step["type"] === "Sequence" ? (step[list] as unknown[]) : [step];
}

export function normalizer(spec: unknown): Step {
  const done: Step[] = steps(spec, "normalizers").map((step): Step => {
    if (step.type === "Prepend") return (text) => (text === "" ? "" : step.prepend + text);
    if (step.type === "Replace" && typeof step.pattern?.String === "string") {
      return (text) => text.replaceAll(step.pattern.String, () => step.content);
    }
    throw unsupported(`normalizer ${step.type}`, KNOWN);
  });
  return (text) => done.reduce((value, step) => step(value), text);
}

export function splitPattern(spec: unknown): string | null {
  const all = steps(spec, "pretokenizers");
  if (all.length === 0) return null;
  const [step] = all;
  const plain = step.type === "Split" && typeof step.pattern?.String === "string" && !step.invert;
  if (all.length > 1 || !plain || step.behavior !== "Contiguous")
    throw unsupported(`pre-tokenizer ${step.type}`, KNOWN);
  return step.pattern.String;
}

/** Ids that the post-processor puts before a text. */
export function templatePrefix(spec: unknown): number[] {
  const prefix: number[] = [];
  for (const step of steps(spec, "processors")) {
    if (step.type !== "TemplateProcessing") throw unsupported(`post-processor ${step.type}`, KNOWN);
    const at = step.single.findIndex((item: object) => "Sequence" in item);
    if (at !== step.single.length - 1) throw unsupported("a template that appends tokens", KNOWN);
    for (const item of step.single.slice(0, at)) prefix.push(...step.special_tokens[item.SpecialToken.id].ids);
  }
  return prefix;
}
