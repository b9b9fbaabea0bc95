// In the page: what is timed, under one interface. A contender has `tokens(ids, text, count)`, which gives exactly
// `count` greedy ids after a prompt that it takes as ids or as text, and `close()`. `bundle` is a folder's address.

/** Runs the bundle's onnx/model.onnx on the page's own thread, which is how it is used without further work. */
async function transformersJs({ bundle, threads }) {
  const modules = "/transformers";
  const { env, AutoModelForCausalLM, Tensor } = await import(
    `${modules}/@huggingface/transformers/dist/transformers.js`
  );
  const [folder, name] = [bundle.slice(0, bundle.lastIndexOf("/") + 1), bundle.slice(bundle.lastIndexOf("/") + 1)];
  Object.assign(env, {
    allowRemoteModels: false,
    allowLocalModels: true,
    localModelPath: folder,
    useBrowserCache: false,
  });
  env.backends.onnx.wasm.wasmPaths = `${modules}/onnxruntime-web/dist/`;
  env.backends.onnx.wasm.numThreads = threads;
  const model = await AutoModelForCausalLM.from_pretrained(name, { device: "wasm", dtype: "fp32" });
  return {
    async tokens(ids, _text, count) {
      const shape = [1, ids.length];
      const output = await model.generate({
        input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), shape),
        attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape),
        max_new_tokens: count,
        min_new_tokens: count,
        do_sample: false,
      });
      return output.tolist()[0].slice(ids.length).map(Number);
    },
    close: () => model.dispose(),
  };
}

/** Runs the bundle's onnx/prefill.onnx in a worker. */
async function ours({ bundle, threads, expandWeights }) {
  const { load } = await import("/ours/index.js");
  const model = await load(bundle, { threads, expandWeights, cache: false });
  if (model.info.threads !== threads || model.info.provider !== "wasm") throw new Error(JSON.stringify(model.info));
  return {
    tokens: async (_ids, text, count) =>
      (await model.generate(text, { maxNewTokens: count, ignoreEos: true })).tokenIds,
    close: () => model.close(),
  };
}

const KINDS = { ours, transformersJs };
const opened = {};

/** Milliseconds of a load, ONNX Runtime's own start included if nothing in this page started it before. */
export async function load({ name, kind, ...options }) {
  const begun = performance.now();
  opened[name] = await KINDS[kind](options);
  return performance.now() - begun;
}

/** Milliseconds of a whole request, and its ids. */
export async function run(name, { ids, text }, count) {
  const begun = performance.now();
  const tokens = await opened[name].tokens(ids, text, count);
  return { ms: performance.now() - begun, tokens };
}
