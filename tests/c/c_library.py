"""What tests call of helium_onnx.h."""

from __future__ import annotations

import ctypes
from array import array
from pathlib import Path


class Library:
    """Failing calls raise RuntimeError with the library's text."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.calls = library
        self.calls.helium_error_text.restype = ctypes.c_char_p

    def check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(self.calls.helium_error_text().decode())

    def open(self, bundle: Path) -> Model:
        handle = ctypes.c_void_p()
        self.check(self.calls.helium_model_open(str(bundle).encode(), None, ctypes.byref(handle)))
        return Model(self, handle)


class Model:
    def __init__(self, library: Library, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle
        self._ids = array("i", bytes(4 << 20))

    def encode(self, text: str, flags: int = 0) -> list[int]:
        data, count = text.encode(), ctypes.c_size_t()
        place = (ctypes.c_int32 * len(self._ids)).from_buffer(self._ids)
        status = self._library.calls.helium_encode(
            self._handle, data, ctypes.c_size_t(len(data)), flags, place, ctypes.c_size_t(len(self._ids)),
            ctypes.byref(count),
        )  # fmt: skip
        self._library.check(status)
        assert count.value <= len(self._ids)
        return self._ids[: count.value].tolist()

    def decode(self, ids: list[int], flags: int = 0) -> str:
        given, size = (ctypes.c_int32 * len(ids))(*ids), ctypes.c_size_t()
        text = ctypes.create_string_buffer(32 * len(ids) + 16)
        status = self._library.calls.helium_decode(
            self._handle, given, ctypes.c_size_t(len(ids)), flags, text, ctypes.c_size_t(len(text)), ctypes.byref(size)
        )
        self._library.check(status)
        assert size.value <= len(text)
        return text.raw[: size.value].decode()

    def close(self) -> None:
        self._library.calls.helium_model_close(self._handle)
