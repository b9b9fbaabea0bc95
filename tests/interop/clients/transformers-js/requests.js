// What a job can ask of transformers.js, in Node and in a page alike. A request is an object with `kind`:
//
// - `generate`: `prompts` (lists of ids, without padding) as one batch, padded on the left; `options` of generate().
//   Gives the new ids of each prompt, up to and with eos.
// - `encode`: `texts`; gives their ids, by a tokenizer that docs/interop.md's way round has been applied to where
//   `byte_fallback` is true. `decode`: `ids`, lists; gives their texts.

const PAD = 3;
const EOS = 2;

// `name` is the bundle's, under env.localModelPath; `options` are those of from_pretrained.
export async function answer({ AutoModelForCausalLM, AutoTokenizer, Tensor }, name, options, requests) {
  let loading;
  const answers = {
    async generate({ prompts, options: generation }) {
      const model = await (loading ??= AutoModelForCausalLM.from_pretrained(name, options));
      const width = Math.max(...prompts.map((prompt) => prompt.length));
      const padded = (row, value) => [...Array(width - row.length).fill(value), ...row];
      const tensor = (rows) =>
        new Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [prompts.length, width]);
      const output = await model.generate({
        input_ids: tensor(prompts.map((prompt) => padded(prompt, PAD))),
        attention_mask: tensor(prompts.map((prompt) => padded(prompt.map(() => 1), 0))),
        ...generation,
      });
      return output.tolist().map((row) => {
        const fresh = row.slice(width).map(Number);
        return fresh.includes(EOS) ? fresh.slice(0, fresh.indexOf(EOS) + 1) : fresh;
      });
    },
    async encode({ texts, byte_fallback }) {
      const tokenizer = await AutoTokenizer.from_pretrained(name);
      if (byte_fallback) addByteFallback(tokenizer);
      return texts.map((text) => tokenizer.encode(text));
    },
    async decode({ ids }) {
      const tokenizer = await AutoTokenizer.from_pretrained(name);
      return ids.map((row) => tokenizer.decode(row, { skip_special_tokens: true }));
    },
  };
  const results = [];
  for (const request of requests) results.push(await answers[request.kind](request));
  return results;
}

// As docs/interop.md gives it; a test holds the two against each other.
function addByteFallback(tokenizer) {
  const { model } = tokenizer._tokenizer;
  const encode = model.encode.bind(model);
  const byte = (value) => `<0x${value.toString(16).toUpperCase().padStart(2, "0")}>`;
  model.encode = (words) =>
    encode(words).flatMap((piece) =>
      model.tokens_to_ids.has(piece) ? [piece] : Array.from(new TextEncoder().encode(piece), byte),
    );
}
