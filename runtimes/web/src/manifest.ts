/** helium.json: what a bundle holds, checked at every reading as `helium_onnx/manifest.py` does. */
import { canonicalWithout } from "./canonical-json.js";
import { HeliumError, messageOf } from "./errors.js";
import { sha256 } from "./sha256.js";

export const FORMAT_VERSION = 1;
export const MANIFEST_FILE = "helium.json";
const REMEDY = "copy or download the bundle again, or export it anew";

export interface FileRecord {
  path: string;
  size: number;
  sha256: string;
}

export interface TensorSpec {
  name: string;
  dtype: string;
  dims: (string | number)[];
}

export interface GraphRecord {
  file: string;
  inputs: TensorSpec[];
  outputs: TensorSpec[];
  operators: Record<string, number>;
}

export interface Manifest {
  format_version: number;
  helium_onnx: string;
  task: string;
  recipe: { name: string; execution_provider: string; graph: { operators: string } };
  model_config: {
    vocab_size: number;
    max_position_embeddings: number;
    bos_token_id?: number | null;
    eos_token_id?: number | number[] | null;
  };
  graphs: Record<string, GraphRecord>;
  files: FileRecord[];
  /** Identifies the bundle: it covers all other fields, and by their digests all files. */
  manifest_sha256: string;
}

/**
 * Read and check the text of helium.json. `source` says in errors where it is from.
 *
 * Throws an IntegrityError for what is not JSON or is not the text that was written, a BundleError for a newer format
 * or fields that this runtime needs and does not find.
 */
export async function readManifest(text: string, source: string): Promise<Manifest> {
  let manifest: Manifest;
  let canonical: string;
  try {
    manifest = JSON.parse(text);
    canonical = canonicalWithout(text, "manifest_sha256");
  } catch (error) {
    throw new HeliumError("IntegrityError", `${source} is not JSON`, { found: messageOf(error), remedy: REMEDY });
  }
  const version: unknown = manifest?.format_version;
  if (!Number.isInteger(version) || (version as number) < 1) {
    throw new HeliumError("BundleError", `${source} is not a manifest`, {
      found: `format_version ${String(version)}`,
      expected: `a whole number from 1 to ${FORMAT_VERSION}`,
      remedy: REMEDY,
    });
  }
  if ((version as number) > FORMAT_VERSION) {
    throw new HeliumError("BundleError", `${source} was written by a newer helium-onnx`, {
      found: `format_version ${String(version)}`,
      expected: `${FORMAT_VERSION} at most, which is what this runtime reads`,
      remedy: "upgrade @helium-onnx/web",
    });
  }
  const digest = await sha256(new TextEncoder().encode(canonical));
  if (digest !== manifest.manifest_sha256) {
    throw new HeliumError("IntegrityError", `${source} was changed`, {
      found: `content of SHA-256 ${digest}`,
      expected: `${String(manifest.manifest_sha256)}, which it states`,
      remedy: REMEDY,
    });
  }
  const prefill = manifest.graphs?.["prefill"];
  if (manifest.task !== "text-generation" || !prefill) {
    throw new HeliumError("BundleError", `${source} does not generate text`, {
      found: `task ${String(manifest.task)}, graphs ${Object.keys(manifest.graphs ?? {}).join(", ") || "none"}`,
      expected: "task text-generation with a graph prefill",
    });
  }
  return manifest;
}

/** The file that the manifest lists as `path`. */
export function fileRecord(manifest: Manifest, path: string): FileRecord {
  const record = manifest.files.find((file) => file.path === path);
  if (!record) {
    throw new HeliumError("BundleError", "The bundle lacks a file that this runtime needs", {
      found: `no ${path} in ${MANIFEST_FILE}`,
      remedy: REMEDY,
    });
  }
  return record;
}
