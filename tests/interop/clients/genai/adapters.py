"""onnxruntime-genai on a bundle whose graphs take LoRA adapters: JSON in, JSON on the last line of standard output.

The job: ``model`` (the bundle), ``adapters`` (names to .onnx_adapter files), ``prompt`` (ids), ``max_new_tokens`` and
``requests``, names or null, one after another through one model. The result: the new ids of each request.
"""

import json
import sys

import onnxruntime_genai as og


def main():
    job = json.load(sys.stdin)
    model = og.Model(job["model"])
    adapters = og.Adapters(model)
    for name, file in job["adapters"].items():
        adapters.load(file, name)
    print(json.dumps([generate(model, adapters, name, job) for name in job["requests"]]))


def generate(model, adapters, name, job):
    prompt = job["prompt"]
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + job["max_new_tokens"])
    generator = og.Generator(model, params)
    if name is not None:
        generator.set_active_adapter(adapters, name)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


if __name__ == "__main__":
    main()
