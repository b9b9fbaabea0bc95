"""A writing aid in a terminal: type the beginning of a text, watch it continue, stop it with Ctrl-C.

pip install helium-onnx                  # no torch
python main.py BUNDLE                    # asks for prompts
python main.py BUNDLE "Plants create"    # one continuation
"""

from __future__ import annotations

import argparse
import sys

import helium_onnx


def continue_text(model: helium_onnx.LanguageModel, prompt: str, tokens: int) -> None:
    """Print the continuation of ``prompt`` as it is made; Ctrl-C ends it early and keeps what is there."""
    stream = model.stream(prompt, max_new_tokens=tokens, temperature=0.7, top_p=0.95, repetition_penalty=1.1)
    try:
        for piece in stream:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" ...", end="")
    print()
    result = stream.result
    rate = result.timings.decode_tokens_per_second
    print(f"[{len(result[0].token_ids)} tokens, {rate:.0f} tokens/s, {result[0].finish_reason}]", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description="Continue texts with a Helium bundle.")
    parser.add_argument("bundle")
    parser.add_argument("prompt", nargs="?")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate at most (default 64)")
    args = parser.parse_args()
    try:
        with helium_onnx.load(args.bundle) as model:
            if args.prompt is not None:
                continue_text(model, args.prompt, args.tokens)
                return 0
            print("Type the beginning of a text; an empty line ends.", file=sys.stderr)
            while line := input("> "):
                continue_text(model, line, args.tokens)
    except helium_onnx.HeliumOnnxError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (EOFError, KeyboardInterrupt):
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
