"""One safetensors file: where its tensors lie, and their elements as float32.

Weights are read by ``os.preadv`` into buffers of the caller's size, never mapped: pages of a mapped file would count
as the exporter's memory. The header is checked here, since a hostile one must not send a read astray.
Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from helium_onnx import strict_json
from helium_onnx.config_fields import short
from helium_onnx.errors import WeightsError

#: Bits of an element for each dtype of the format; those with a row in ``_READABLE`` can be read.
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16}
_BITS |= {"BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}
#: The unsigned integer that holds an element, and its value for infinity: the exponent's bits, all set.
_READABLE: dict[str, tuple[np.dtype[np.unsignedinteger], int]] = {
    "BF16": (np.dtype("<u2"), 0x7F80),
    "F16": (np.dtype("<u2"), 0x7C00),
    "F32": (np.dtype("<u4"), 0x7F800000),
}
MAX_HEADER = 100_000_000  # the safetensors library's own limit
_BLOCK = 1 << 18  # elements converted at once: 1 MiB of float32 stays in the cache between read, check and conversion
AGAIN = "download the checkpoint again"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: ``nbytes`` of ``file`` from ``offset`` on; ``dtype`` in safetensors' names (``BF16``)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file. Raises WeightsError unless they fill the file exactly, without overlap."""

    def unsound(found: object, expected: str, remedy: str = AGAIN) -> WeightsError:
        return WeightsError(f"{path} is no sound safetensors file", found=found, expected=expected, remedy=remedy)

    with opened(path) as fd:
        size = os.fstat(fd).st_size
        start = os.pread(fd, 64, 0)
        if start.startswith(b"version https://git-lfs"):
            raise unsound(
                "a Git LFS pointer", "the weights themselves", "run `git lfs pull` in the checkpoint's folder"
            )
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            found = f"a header of {length:,} bytes in a file of {size:,}" if size >= 8 else f"{size} bytes"
            raise unsound(found, f"a header that lies in the file, of at most {MAX_HEADER:,} bytes")
        text = os.pread(fd, length, 8)
    try:
        header = json_object(text)
    except ValueError as error:
        raise unsound(error, "a header that is a JSON object in UTF-8") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if dtype in _BITS:
                pass
            case _:
                raise unsound(f"{short(name)}: {short(entry)}", "a known dtype, a shape and two data_offsets")
        # Eight axes and 63 bits an axis: or the product of a hostile shape would take minutes.
        if len(shape) > 8 or not all(type(dim) is int and 0 <= dim < 1 << 63 for dim in shape):
            raise unsound(f"{short(name)} of shape {short(shape)}", "at most eight axes, of integers from 0")
        if not 0 <= begin <= end:
            raise unsound(f"{short(name)} from {short(begin)} to {short(end)}", "data_offsets that ascend from 0")
        if (nbytes := math.prod(shape) * _BITS[dtype] // 8) != end - begin:
            raise unsound(f"{short(name)} in {short(end - begin)} bytes", f"{nbytes:,} for {dtype} {short(shape)}")
        tensors[name] = TensorInfo(name, dtype, tuple(shape), path, 8 + length + begin, nbytes)
    end = 8 + length
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            raise unsound(
                f"{short(info.name)} at byte {short(info.offset)}", f"it at {end:,}, where the one before ends"
            )
        end += info.nbytes
    if end != size:
        what = "truncated" if size < end else "longer than its tensors"
        raise unsound(f"{size:,} bytes: the file is {what}", f"{end:,} bytes, as its header says")
    return tensors


def readable(info: TensorInfo) -> TensorInfo:
    """``info`` itself, if its dtype can be read as float32; raises WeightsError otherwise."""
    if info.dtype not in _READABLE:
        raise WeightsError(
            f"{info.file}: the tensor {info.name} has a dtype that cannot be exported",
            found=info.dtype,
            expected=" or ".join(_READABLE),
            remedy="take the checkpoint that is not quantized; a recipe quantizes it",
        )
    return info


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file descriptor to read from. Raises WeightsError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise WeightsError(f"{path} cannot be opened", found=error, remedy="check its permissions") from error
    try:
        yield fd
    finally:
        os.close(fd)


def fill(fd: int, info: TensorInfo, first: int, out: npt.NDArray[np.float32]) -> None:
    """Elements from ``first`` on into ``out`` (flat, contiguous), a block at a time: read, check, convert."""
    unsigned, infinity = _READABLE[info.dtype]
    signed, sign = np.dtype(f"<i{unsigned.itemsize}"), 1 << (8 * unsigned.itemsize - 1)
    scratch = np.empty(0 if info.dtype == "F32" else min(_BLOCK, out.size), unsigned)
    for done in range(0, out.size, _BLOCK):
        target = out[done : done + _BLOCK]
        raw = target.view(unsigned) if info.dtype == "F32" else scratch[: target.size]
        _read_exactly(fd, info, (first + done) * unsigned.itemsize, raw.data.cast("B"))
        # Infinities and NaN are the largest bit patterns of either sign: two maxima find them, without a temporary.
        if raw.view(signed).max() >= infinity or raw.max() >= sign | infinity:
            at = int(np.flatnonzero((raw & infinity) == infinity)[0])
            raise WeightsError(
                f"{info.file}: the tensor {info.name} is not finite",
                found=f"{'NaN' if raw[at] & (infinity ^ (sign - 1)) else 'an infinity'} at "
                f"{[int(i) for i in np.unravel_index(first + done + at, info.shape)]}",
                expected="finite numbers",
                remedy=f"{AGAIN}; if it stays, its training or conversion has failed",
            )
        if info.dtype == "BF16":  # bfloat16 is the upper half of a float32
            bits = target.view(np.uint32)
            bits[...] = raw
            bits <<= 16
        elif info.dtype == "F16":
            target[...] = raw.view(np.float16)


def _read_exactly(fd: int, info: TensorInfo, begin: int, into: memoryview) -> None:
    done = 0
    while done < into.nbytes:
        try:
            count = os.preadv(fd, [into[done:]], info.offset + begin + done)
        except OSError as error:
            raise WeightsError(f"{info.file} cannot be read", found=error, remedy="check the disk") from error
        if count == 0:
            raise WeightsError(
                f"{info.file} is truncated",
                found=f"its end at byte {begin + done:,} of the tensor {info.name}",
                expected=f"{info.nbytes:,} bytes of it",
                remedy=AGAIN,
            )
        done += count


def json_object(data: bytes) -> dict[str, Any]:
    """Raises ValueError: no JSON object in UTF-8, a key twice, NaN or Infinity."""
    value, flaws = strict_json.parse(data.decode())
    if flaws or not isinstance(value, dict):
        raise ValueError("; ".join(flaws) or f"{short(value)}, not an object")
    return value
