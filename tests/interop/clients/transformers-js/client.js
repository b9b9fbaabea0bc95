// transformers.js in Node on a bundle: a JSON job on standard input, a JSON result on the last line of standard output.
// Started in the folder that holds node_modules. The job: `model` (the bundle's folder), `options` (of from_pretrained)
// and `requests` (requests.js); the result is the list of what each gave.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname } from "node:path";
import { pathToFileURL } from "node:url";
import { answer } from "./requests.js";

const require = createRequire(process.cwd() + "/");
const transformers = await import(pathToFileURL(require.resolve("@huggingface/transformers")));
const job = JSON.parse(readFileSync(0, "utf8"));
transformers.env.allowRemoteModels = false;
transformers.env.localModelPath = dirname(job.model);
console.log(JSON.stringify(await answer(transformers, basename(job.model), job.options ?? {}, job.requests)));
