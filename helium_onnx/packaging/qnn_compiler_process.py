"""The process that compiles: a job as a line of JSON on stdin, reports as lines of JSON on stdout.

It ends when stdin does, so that no compiler works on after the program that started it was killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from helium_onnx.bundle import Bundle
from helium_onnx.errors import HeliumOnnxError
from helium_onnx.runtimes.graph_loading import load_graph, session_options
from helium_onnx.runtimes.providers import QNN, default_threads

#: How onnxruntime-qnn words a disk that is full, or a file that cannot be written.
_UNWRITTEN = "Failed to write context cache file"


def main() -> None:
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the compiler prints on stdout

    def report(**words: object) -> None:
        reports.write(json.dumps(words) + "\n")
        reports.flush()

    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        _compile(job, report)
    except HeliumOnnxError as error:
        kind = "disk" if error.found is not None and _UNWRITTEN in error.found else type(error).__name__
        told = {"kind": kind, "what": error.what, "found": error.found, "expected": error.expected}
        report(error={**told, "remedy": error.remedy})
        os._exit(1)
    report(finished=True)
    os._exit(0)  # the plugin's libraries need not be taken down one by one


def _compile(job: dict[str, Any], report: Any) -> None:
    bundle = Bundle.open(job["bundle"])
    sessions = []  # kept until the last is compiled: they hold what is shared
    for index, (phase, path) in enumerate(job["paths"].items()):
        report(compiling=f"{phase}.onnx")
        options = session_options(QNN, default_threads())
        entries = {"ep.context_enable": "1", "ep.context_embed_mode": "0", "ep.context_file_path": path}
        provider_options = dict(job["provider_options"])
        if job["share_weights"]:
            entries["ep.share_ep_contexts"] = "1"
            provider_options["enable_htp_weight_sharing"] = "1"
            if index == len(job["paths"]) - 1:  # this one writes the binary of all
                entries["ep.stop_share_ep_contexts"] = "1"
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        record = bundle.manifest.graphs[phase]
        session = load_graph(bundle.graph_path(phase), options, QNN, bundle, record, provider_options)
        if job["share_weights"]:
            sessions.append(session)
        else:
            del session
        Path(path).stat()  # OSError where nothing was written


def _end_with_stdin() -> None:
    while sys.stdin.buffer.read(65536):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
