"""What Swift's answers are held against: the C sample's texts, and a bundle on a server."""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import threading
from pathlib import Path

# Runs of the C sample that Swift's texts are held against.
RUNS: list[dict[str, object]] = [
    {"prompt": "Once upon a time", "max_new_tokens": 64},
    {"prompt": "Il était une fois", "max_new_tokens": 64},
    {"prompt": "", "max_new_tokens": 20},
    {"prompt": "The 🦙 and the 👩‍👩‍👧‍👦", "max_new_tokens": 40},
    {"prompt": "a NUL \0 in the text", "max_new_tokens": 24},
    {"prompt": "word " * 400, "max_new_tokens": 24},
    {"prompt": "Once upon a time", "max_new_tokens": 48, "temperature": 0.8, "seed": 1},
    {
        "prompt": "Once upon a time",
        "max_new_tokens": 48,
        "temperature": 1.5,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.02,
        "seed": 18446744073709551615,
    },
    {"prompt": "Es war einmal", "max_new_tokens": 48, "temperature": 1.0, "repetition_penalty": 1.3, "seed": 42},
    {"prompt": "Once upon a time", "max_new_tokens": 64, "stop": "\n"},
]


def expected(sample: Path, bundle: Path, runtime: Path) -> list[dict[str, object]]:
    """What the C sample generates, with ONNX Runtime's kernels, which are the package's."""
    all_runs = []
    for run in RUNS:
        flags = ["--kernels", "onnxruntime"]
        for name, value in run.items():
            if name != "prompt":
                flags += ["--" + name.replace("_", "-"), str(value)]

        def output(*more: str, run: dict[str, object] = run, flags: list[str] = flags) -> str:
            environment = {**os.environ, "HELIUM_ONNXRUNTIME": str(runtime)}
            command, prompt = [sample, bundle, "-", *flags, *more], str(run["prompt"]).encode()
            done = subprocess.run(command, input=prompt, capture_output=True, check=True, env=environment)
            return done.stdout.decode()

        all_runs.append(
            {**run, "ids": [int(line) for line in output("--ids").split()], "text": output().removesuffix("\n")}
        )
    return all_runs


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Files, and the rest of a file."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if start and start >= len(data):
            return self.send_error(416)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:])
        return None

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def serve(folder: Path) -> str:
    """The URL of the folder, as long as this process lives."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: RangeHandler(*a, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/"
