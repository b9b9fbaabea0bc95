"""The worker of helium-onnx: a bundle through its session, below sampling and text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from serving import Arguments, serve

from helium_onnx.bundle import Bundle
from helium_onnx.runtimes.opening import open_session


class Ours:
    """One row, greedily."""

    def __init__(self, arguments: Arguments) -> None:
        bundle = Bundle.open(arguments.path)
        self.session = open_session(bundle, threads=arguments.threads, context_length=arguments.context)

    def generate(self, ids: list[int], new: int, emit: Callable[[int], None]) -> None:
        past = self.session.new_past(1)
        token = int(self.session.run("prefill", np.asarray(ids, np.int64)[None], past)[0, -1].argmax())
        emit(token)
        for _ in range(new):
            token = int(self.session.run("decode", np.array([[token]]), past)[0, -1].argmax())
            emit(token)


if __name__ == "__main__":
    serve(Ours)
