"""A worker of main_job.py for onnxruntime-genai; runs in that package's own environment."""

import json
import sys
import time

import numpy as np
import onnxruntime_genai as og


def main() -> None:
    path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config = og.Config(path)
    # Its default is one thread.
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=context, do_sample=False)
        generator = og.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(np.asarray(request["ids"], np.int32))
        generator.generate_next_token()
        prefill = time.perf_counter() - start
        steps = []
        for _ in range(request["new"]):
            start = time.perf_counter()
            generator.generate_next_token()
            steps.append(time.perf_counter() - start)
        print(json.dumps({"prefill": prefill, "steps": steps}), flush=True)


if __name__ == "__main__":
    main()
