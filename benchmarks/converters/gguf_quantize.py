"""Quantize a GGUF file by llama.cpp's own function: runs in that peer's environment.

    python gguf_quantize.py IN.gguf OUT.gguf q4_0|q4_k_m|q8_0 [pure]

``pure`` gives every matrix that type, head and embedding too; without it llama.cpp chooses better types for some.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys

import llama_cpp as c

#: llama_ftype, and the ggml_type of all matrices where it is pure.
TYPES = {
    "q4_0": (c.LLAMA_FTYPE_MOSTLY_Q4_0, c.GGML_TYPE_Q4_0),
    "q8_0": (c.LLAMA_FTYPE_MOSTLY_Q8_0, c.GGML_TYPE_Q8_0),
    "q4_k_m": (c.LLAMA_FTYPE_MOSTLY_Q4_K_M, c.GGML_TYPE_Q4_K),
}


def main() -> None:
    source, out, kind, *pure = sys.argv[1:]
    params = c.llama_model_quantize_default_params()
    params.ftype, all_of_it = TYPES[kind]
    if pure:
        params.pure = True
        params.output_tensor_type = params.token_embedding_type = all_of_it
    assert c.llama_model_quantize(source.encode(), out.encode(), params) == 0


if __name__ == "__main__":
    main()
