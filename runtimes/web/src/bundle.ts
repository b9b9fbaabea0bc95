/**
 * The files of a bundle, from a base URL or from files that the user chose. Each is held against helium.json before it
 * is used or kept, so a damaged download is an error and is fetched anew the next time.
 */
import { HeliumError, messageOf } from "./errors.js";
import { fileRecord, MANIFEST_FILE, readManifest, type FileRecord, type Manifest } from "./manifest.js";
import { sha256 } from "./sha256.js";

/** Where a bundle is. Plain data: it goes to the worker. `files` maps paths inside the bundle. */
export type BundleSource = { url: string } | { files: { path: string; file: Blob }[] };

export interface LoadProgress {
  /** `download`: from the network; `cache`: from the browser's cache; `read`: from the user's files; `start`: session. */
  step: "download" | "cache" | "read" | "start";
  file: string;
  /** Over all files. */
  loadedBytes: number;
  totalBytes: number;
}

export interface Bundle {
  manifest: Manifest;
  graph: Uint8Array<ArrayBuffer>;
  weights: Uint8Array<ArrayBuffer>;
  tokenizerJson: string;
  /** Of the three together. */
  totalBytes: number;
  /** Whether files came from the cache, were put there, or why not. */
  cache: "hit" | "stored" | "off" | "unavailable" | "full";
}

export interface ReadOptions {
  cache: boolean;
  onProgress: (progress: LoadProgress) => void;
  /** Asked with the manifest before the large files are read; throws to refuse. */
  admit: (manifest: Manifest) => void;
}

const CACHE_NAME = "helium-onnx";
export const GRAPH = "prefill";
export const WEIGHTS_FILE = "onnx/model.onnx_data";
const REMEDY = "load it again; if it stays so, copy the bundle to the server anew";

/** All of a bundle that this runtime needs: one graph, its weights, the tokenizer. */
export async function readBundle(source: BundleSource, options: ReadOptions): Promise<Bundle> {
  const reader = "url" in source ? new UrlReader(source.url, options) : new FilesReader(source.files);
  const manifest = await readManifest(await reader.manifestText(), `${reader.name}${MANIFEST_FILE}`);
  options.admit(manifest);
  const records = ["tokenizer.json", manifest.graphs[GRAPH]!.file, WEIGHTS_FILE].map((p) => fileRecord(manifest, p));
  const totalBytes = records.reduce((total, record) => total + record.size, 0);
  let before = 0;
  const contents: Uint8Array<ArrayBuffer>[] = [];
  for (const record of records) {
    contents.push(
      await reader.read(record, (step, bytes) => {
        options.onProgress({ step, file: record.path, loadedBytes: before + bytes, totalBytes });
      }),
    );
    before += record.size;
  }
  const [tokenizer, graph, weights] = contents;
  return {
    manifest,
    graph: graph!,
    weights: weights!,
    tokenizerJson: new TextDecoder().decode(tokenizer),
    totalBytes,
    cache: reader.cache,
  };
}

type OnBytes = (step: LoadProgress["step"], bytes: number) => void;

class FilesReader {
  readonly name = "";
  readonly cache = "off";
  readonly #files: Map<string, Blob>;

  constructor(files: { path: string; file: Blob }[]) {
    this.#files = new Map(files.map(({ path, file }) => [path, file]));
  }

  async manifestText(): Promise<string> {
    return await this.#file(MANIFEST_FILE).text();
  }

  async read(record: FileRecord, onBytes: OnBytes): Promise<Uint8Array<ArrayBuffer>> {
    const file = this.#file(record.path);
    checkSize(record, file.size, record.path);
    const data = await collect(file.stream(), record, record.path, (bytes) => onBytes("read", bytes));
    await checkDigest(record, data, record.path);
    return data;
  }

  #file(path: string): Blob {
    const file = this.#files.get(path);
    if (!file) {
      throw new HeliumError("IntegrityError", "The chosen files are no whole bundle", {
        found: `no ${path} among ${this.#files.size} files`,
        remedy: `choose the folder that holds ${MANIFEST_FILE}`,
      });
    }
    return file;
  }
}

class UrlReader {
  readonly name: string;
  readonly #options: ReadOptions;
  #store: Cache | null = null;
  #state: Bundle["cache"] = "hit";

  constructor(url: string, options: ReadOptions) {
    this.name = url.endsWith("/") ? url : `${url}/`;
    this.#options = options;
  }

  get cache(): Bundle["cache"] {
    return this.#state;
  }

  /** From the network, since a bundle may be replaced; from the cache only where there is no network. */
  async manifestText(): Promise<string> {
    if (!this.#options.cache) this.#state = "off";
    // Absent where the page is not secure; refused in some private windows.
    else this.#store = (await globalThis.caches?.open(CACHE_NAME).catch(() => null)) ?? null;
    if (this.#options.cache && this.#store === null) this.#state = "unavailable";
    const url = this.name + MANIFEST_FILE;
    try {
      const response = await this.#fetch(url);
      const text = await response.text();
      await this.#keep(url, text);
      return text;
    } catch (error) {
      const kept =
        error instanceof HeliumError && error.found === NO_ANSWER ? await this.#store?.match(url) : undefined;
      if (!kept) throw error;
      return await kept.text();
    }
  }

  async read(record: FileRecord, onBytes: OnBytes): Promise<Uint8Array<ArrayBuffer>> {
    const url = this.name + record.path;
    const key = `${url}?sha256=${record.sha256}`;
    const kept = await this.#store?.match(key);
    if (kept?.body) {
      try {
        const data = await collect(kept.body, record, url, (bytes) => onBytes("cache", bytes));
        await checkDigest(record, data, url);
        return data;
      } catch (error) {
        if (!(error instanceof HeliumError)) throw error;
        await this.#store!.delete(key); // what the disk has lost is fetched again
      }
    }
    const response = await this.#fetch(url);
    const data = await collect(response.body!, record, url, (bytes) => onBytes("download", bytes));
    await checkDigest(record, data, url);
    await this.#store?.delete(url, { ignoreSearch: true }).catch(() => false); // of an earlier bundle at this address
    await this.#keep(key, data);
    return data;
  }

  async #keep(key: string, body: BodyInit): Promise<void> {
    if (this.#store === null) return;
    try {
      await this.#store.put(key, new Response(body));
      if (this.#state === "hit" && key.includes("?")) this.#state = "stored";
    } catch {
      this.#state = "full"; // the quota: the bundle works, and is downloaded again the next time
    }
  }

  async #fetch(url: string): Promise<Response> {
    let response: Response;
    try {
      response = await fetch(url, { cache: "no-cache" });
    } catch (error) {
      throw new HeliumError("DownloadError", `${url} cannot be fetched (${messageOf(error)})`, {
        found: NO_ANSWER,
        remedy: "check the address and the network; another origin must allow this page (CORS)",
      });
    }
    if (!response.ok || !response.body) {
      throw new HeliumError("DownloadError", `${url} cannot be fetched`, {
        found: `HTTP status ${response.status}`,
        expected: "200",
        remedy: `give the address of the folder that holds ${MANIFEST_FILE}`,
      });
    }
    return response;
  }
}

const NO_ANSWER = "no answer";

/** The stream's bytes, which must be as many as the manifest says. */
async function collect(
  stream: ReadableStream<Uint8Array>,
  record: FileRecord,
  name: string,
  onBytes: (bytes: number) => void,
): Promise<Uint8Array<ArrayBuffer>> {
  const data = allocate(record);
  let size = 0;
  const reader = stream.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (size + part.value.length <= data.length) data.set(part.value, size);
      else checkSize(record, size + part.value.length, name);
      size += part.value.length;
      onBytes(size);
    }
  } catch (error) {
    reader.cancel().catch(() => undefined); // the error that is already there says more
    if (error instanceof HeliumError) throw error;
    throw new HeliumError("DownloadError", `${name} broke off (${messageOf(error)})`, {
      found: `${size} bytes`,
      expected: `${record.size}`,
      remedy: "load it again",
    });
  }
  checkSize(record, size, name);
  return data;
}

function allocate(record: FileRecord): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(record.size);
  } catch {
    throw new HeliumError("ResourceError", "The browser has too little memory for the bundle", {
      found: `no ${record.size} bytes for ${record.path}`,
      remedy: "close other tabs, or take a smaller bundle: cpu-int4",
    });
  }
}

function checkSize(record: FileRecord, size: number, name: string): void {
  if (size !== record.size) {
    const found = size > record.size ? `${size} bytes or more` : `${size} bytes`;
    throw new HeliumError("IntegrityError", `${name} is damaged`, {
      found,
      expected: `${record.size}`,
      remedy: REMEDY,
    });
  }
}

async function checkDigest(record: FileRecord, data: Uint8Array<ArrayBuffer>, name: string): Promise<void> {
  const digest = await sha256(data);
  if (digest !== record.sha256) {
    throw new HeliumError("IntegrityError", `${name} is damaged`, {
      found: `SHA-256 ${digest}`,
      expected: record.sha256,
      remedy: REMEDY,
    });
  }
}
