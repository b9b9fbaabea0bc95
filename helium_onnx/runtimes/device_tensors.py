"""Tensors at an address of a device: what they are, and how ONNX Runtime is given them without a copy."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike


class ElementType(NamedTuple):
    """A type of elements: its number in onnx.proto3, DLPack's kind of number, its bytes, and numpy's name for them.

    numpy has no bfloat16: its bytes are kept as uint16.
    """

    onnx: int
    dlpack: int
    itemsize: int
    numpy: DTypeLike


_SIGNED, _UNSIGNED, _FLOAT, _BFLOAT = 0, 1, 2, 4  # DLDataTypeCode of dlpack.h
ELEMENT_TYPES = {
    "float32": ElementType(1, _FLOAT, 4, np.float32),
    "uint8": ElementType(2, _UNSIGNED, 1, np.uint8),
    "int8": ElementType(3, _SIGNED, 1, np.int8),
    "int32": ElementType(6, _SIGNED, 4, np.int32),
    "int64": ElementType(7, _SIGNED, 8, np.int64),
    "float16": ElementType(10, _FLOAT, 2, np.float16),
    "bfloat16": ElementType(16, _BFLOAT, 2, np.uint16),
}


@dataclass(frozen=True)
class DeviceTensor:
    """``dtype`` in ONNX's lower-case name, contiguous from ``address`` on."""

    address: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.dtype, self.shape)

    def rows(self, first: int, count: int) -> DeviceTensor:
        """Part of the outermost dimension."""
        row = tensor_bytes(self.dtype, self.shape[1:])
        return DeviceTensor(self.address + first * row, self.dtype, (count, *self.shape[1:]))


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * ELEMENT_TYPES[dtype].itemsize


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    """DLManagedTensor of dlpack.h (https://github.com/dmlc/dlpack)."""

    _fields_ = (("tensor", _Tensor), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


#: DLDeviceType of ONNX Runtime's names of devices.
_DLPACK_DEVICES = {"cpu": 1, "cuda": 2}
_CAPSULE = ctypes.c_char_p(b"dltensor")  # a capsule keeps the pointer, not the text


def ort_value(tensor: DeviceTensor, device: str, index: int) -> ort.OrtValue:
    """An OrtValue over the tensor's memory, which must outlive it. ``device`` is ``cpu`` or ``cuda``.

    ONNX Runtime's own OrtValues on CUDA come from an arena that grows by up to 1 GB at a time and never gives back: on
    a card of 8 GB that is what the next model would have needed. DLPack is its way to take memory of others.
    """
    kind = ELEMENT_TYPES[tensor.dtype]
    size = ctypes.sizeof(_ManagedTensor)
    allocate, free = ctypes.pythonapi.PyMem_RawMalloc, ctypes.pythonapi.PyMem_RawFree
    allocate.restype, allocate.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    # One block for the description and the shape; ONNX Runtime frees it by calling the deleter with it.
    block = allocate(size + 8 * len(tensor.shape))
    assert block is not None
    (ctypes.c_int64 * len(tensor.shape)).from_address(block + size)[:] = list(tensor.shape)
    described = _ManagedTensor.from_address(block)
    described.tensor = _Tensor(
        tensor.address,
        _Device(_DLPACK_DEVICES[device], index),
        len(tensor.shape),
        _DataType(kind.dlpack, 8 * kind.itemsize, 1),
        block + size,
        None,
        0,
    )
    described.manager_ctx = None
    described.deleter = ctypes.cast(free, ctypes.c_void_p).value
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return ort.OrtValue.from_dlpack(capsule(block, _CAPSULE, None))
