/** From what was thrown to what a reader can do about it. */
import { HeliumError } from "@helium-onnx/web";
import { byId } from "./dom.js";
import { fill, type Strings } from "./strings.js";

/** A pair of strings, `${name}Title` and `${name}Text`. */
type Name = keyof { [K in keyof Strings as K extends `${infer N}Title` ? N : never]: true };

export interface Problem {
  name: Name;
  values: Record<string, string | number>;
  /** In English, as the package says it. */
  detail: string;
}

export function problemOf(error: unknown, values: Problem["values"] = {}): Problem {
  return { name: nameOf(error), values, detail: error instanceof HeliumError ? error.message : String(error) };
}

function nameOf(error: unknown): Name {
  if (error instanceof DOMException && error.name === "AbortError") return "cancelled";
  if (!(error instanceof HeliumError)) return "other";
  switch (error.kind) {
    case "DownloadError":
      if (error.found?.startsWith("HTTP status") || / is no address$/.test(error.what)) return "noModel";
      return error.found === "no answer" ? "offline" : "brokeOff";
    case "IntegrityError":
      if (/^The chosen files/.test(error.what)) return "wrongFolder";
      return / is not JSON$/.test(error.what) ? "noModel" : "damaged"; // a server's own page in place of helium.json
    case "ResourceError":
      return "memory";
    case "BundleError":
    case "TokenizerError":
      return "unsuitable";
    case "ProviderError":
      return "provider";
    case "ContextOverflowError":
      return "tooLong";
    case "PromptError":
      return "prompt";
    case "UsageError":
      return "usage";
    default:
      return "other";
  }
}

/** Shows it in the elements `#${id}`, `#${id}-title`, `-text`, `-details`, `-detail`; null hides them. */
export function showProblem(id: string, problem: Problem | null, strings: Strings): void {
  byId(id).hidden = problem === null;
  if (problem === null) return;
  byId(`${id}-title`).textContent = strings[`${problem.name}Title`];
  byId(`${id}-text`).textContent = fill(strings[`${problem.name}Text`], problem.values);
  byId(`${id}-detail`).textContent = problem.detail;
  byId(`${id}-details`).hidden = problem.name === "cancelled";
}
