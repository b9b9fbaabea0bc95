"""What ``stream`` gives back: the pieces of one text."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from helium_onnx.errors import GenerationError
from helium_onnx.generation.loop import Loop
from helium_onnx.generation.result import GenerationResult


class TextIterator:
    """The pieces of one text. ``result`` is there after the last, or after ``close()``.

    Ctrl-C in the middle of a step is raised as usual; ``result`` then holds what there is, as ``interrupted``.
    """

    def __init__(self, loop: Loop, events: Iterator[tuple[int, str]]) -> None:
        self._loop = loop
        self._events = events
        self._result: GenerationResult | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._result is not None:
            raise StopIteration
        try:
            return next(self._events)[1]
        except StopIteration:
            self._result = self._loop.result()
            raise
        except KeyboardInterrupt:
            self.close()
            raise

    def close(self) -> None:
        """End the text here, unless it has ended."""
        if self._result is None:
            self._loop.interrupt()
            self._result = self._loop.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def result(self) -> GenerationResult:
        """The whole result.

        Raises:
            GenerationError: the text has not ended yet.
        """
        if self._result is None:
            raise GenerationError(
                "The result is not there yet", found="a stream in progress", remedy="read it to its end, or close() it"
            )
        return self._result
