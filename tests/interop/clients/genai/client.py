"""onnxruntime-genai on a bundle: a JSON job on standard input, a JSON result on the last line of standard output.

The job: ``model`` (the bundle), ``overlay`` (null, or what to lay over its genai_config.json), ``prompts`` (lists of
ids, generated one after another) and ``options``, a list of what set_search_options() takes, with ``max_new_tokens``
instead of ``max_length``. The result has for each of the options a list: the new ids of each prompt, up to and with
eos.
"""

import json
import sys

import onnxruntime_genai as og


def main():
    job = json.load(sys.stdin)
    config = og.Config(job["model"])
    if job.get("overlay"):
        config.overlay(json.dumps(job["overlay"]))
    model = og.Model(config)
    print(json.dumps([[generate(model, prompt, **one) for prompt in job["prompts"]] for one in job["options"]]))


def generate(model, prompt, max_new_tokens, **options):
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + max_new_tokens, **options)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


if __name__ == "__main__":
    main()
