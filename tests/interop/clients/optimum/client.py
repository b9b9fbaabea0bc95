"""optimum (and, as a reference, transformers) on a bundle: a JSON job on standard input, a JSON result on the last line
of standard output.

The job: ``model`` (a folder), ``library`` (``optimum`` or ``transformers``) and ``requests``, a list of objects with
``kind``:

- ``generate``: ``prompts`` (lists of ids) as one batch, padded on the left; ``options`` of generate(). Gives the new
  ids of each prompt, up to and with eos.
- ``pipeline``: ``text`` and ``options``; gives the pipeline's text.
- ``encode``: ``texts``; gives their ids.

The result is the list of what each request gave.
"""

import json
import sys

import torch
from transformers import AutoTokenizer, pipeline

PAD, EOS = 3, 2


def main():
    job = json.load(sys.stdin)
    model = load(job["library"], job["model"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    answers = {
        "generate": lambda request: generate(model, request["prompts"], request["options"]),
        "pipeline": lambda request: run_pipeline(model, tokenizer, request["text"], request["options"]),
        "encode": lambda request: [tokenizer(text)["input_ids"] for text in request["texts"]],
    }
    print(json.dumps([answers[request["kind"]](request) for request in job["requests"]]))


def load(library, folder):
    if library == "transformers":
        from transformers import HeliumForCausalLM

        return HeliumForCausalLM.from_pretrained(folder, dtype=torch.float32)
    from optimum.onnxruntime import ORTModelForCausalLM

    return ORTModelForCausalLM.from_pretrained(folder)


def generate(model, prompts, options):
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=mask, **options)
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in output[:, width:].tolist()]


def run_pipeline(model, tokenizer, text, options):
    return pipeline("text-generation", model=model, tokenizer=tokenizer)(text, **options)[0]["generated_text"]


if __name__ == "__main__":
    main()
