"""Tensors on a GPU that is played: a library that speaks DLPack, in a process whose only driver is
kernels/tests/cuda/fake_driver.c.

Its memory is the host's, so that tests can look; work on streams is done when somebody waits for it and not
before, so that whoever forgets to wait finds old data.
"""

import ctypes
from ctypes import (
    POINTER,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest

BF16 = np.dtype(ml_dtypes.bfloat16)
CUDA = 2
TYPES = {
    np.dtype("f4"): (2, 32), np.dtype("f2"): (2, 16), BF16: (4, 16), np.dtype("f8"): (2, 64),
    np.dtype("u1"): (1, 8), np.dtype("i4"): (0, 32),
}  # fmt: skip

driver = ctypes.CDLL("libcuda.so")
python = ctypes.pythonapi
python.PyCapsule_New.restype = ctypes.py_object
python.PyCapsule_New.argtypes = [c_void_p, ctypes.c_char_p, c_void_p]
python.PyCapsule_GetPointer.restype = c_void_p
python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
python.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]


def call(name, *args):
    status = getattr(driver, name)(*args)
    assert status == 0, (name, status)


def memory_left():
    left, everything = c_size_t(), c_size_t()
    call("cuMemGetInfo_v2", ctypes.byref(left), ctypes.byref(everything))
    return left.value


class Device(ctypes.Structure):
    _fields_ = [("kind", c_int32), ("id", c_int32)]


class DataType(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p), ("device", Device), ("ndim", c_int32), ("dtype", DataType),
        ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)), ("byte_offset", c_uint64),
    ]  # fmt: skip


Deleter = ctypes.CFUNCTYPE(None, c_void_p)


class Managed(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", c_void_p), ("deleter", Deleter)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", c_uint32), ("minor", c_uint32), ("context", c_void_p), ("deleter", Deleter),
        ("flags", c_uint64), ("tensor", DLTensor),
    ]  # fmt: skip


@Deleter
def delete(address):
    del Tensor.alive[address]


STREAM = c_void_p()
call("cuInit", 0)
call("cuStreamCreate", ctypes.byref(STREAM), 1)


class Tensor:
    """A NumPy array on a GPU: its memory is written by work that is queued, and done when its importer waits."""

    capsule = b"dltensor_versioned"
    where = (CUDA, 0)
    """What `__dlpack_device__` says."""
    alive: ClassVar[dict] = {}
    """Exports that nobody has deleted, of all tensors."""

    def __init__(self, array, base=None, device=(CUDA, 0), flags=0, shift=0):
        if base is None:
            base = array = np.ascontiguousarray(array)
        self.source, self.flags, self.device = base, flags, Device(*device)
        self.where = device
        self.memory = c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(self.memory), c_size_t(base.nbytes + shift))
        to = c_uint64(self.memory.value + shift)
        call("cuMemcpyHtoDAsync_v2", to, c_void_p(base.ctypes.data), c_size_t(base.nbytes), STREAM)
        n = array.ndim
        size = array.itemsize
        code, bits = TYPES[array.dtype]
        self.shape = (c_int64 * n)(*array.shape)
        self.strides = (c_int64 * n)(*(s // size for s in array.strides))
        offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        self.tensor = DLTensor(
            to.value, self.device, n, DataType(code, bits, 1), self.shape, self.strides, offset
        )

    def __dlpack_device__(self):
        return self.where

    def __dlpack__(self, *, stream=None, max_version=None):
        self.order(stream)
        return self.export()

    def order(self, stream):
        assert stream not in (None, 0, 1, 2, -1), stream
        event = c_void_p()
        call("cuEventCreate", ctypes.byref(event), 2)
        call("cuEventRecord", event, STREAM)
        call("cuStreamWaitEvent", c_void_p(stream), event, 0)

    def export(self):
        if self.capsule == b"dltensor":
            managed = Managed(self.tensor, None, delete)
        else:
            managed = Versioned(1, 0, None, delete, self.flags, self.tensor)
        address = ctypes.addressof(managed)
        Tensor.alive[address] = (self, managed)
        return python.PyCapsule_New(address, self.capsule, None)

    def __del__(self):
        call("cuMemFree_v2", self.memory)


class Old(Tensor):
    """Of before DLPack 1."""

    capsule = b"dltensor"

    def __dlpack__(self, *, stream=None):
        return super().__dlpack__(stream=stream)


class Careless(Tensor):
    """Orders nothing."""

    def order(self, stream):
        pass


class Ancient(Tensor):
    def __dlpack__(self):
        return self.export()


class Used(Tensor):
    """Somebody else has taken its capsule over."""

    def export(self):
        capsule = super().export()
        python.PyCapsule_SetName(capsule, b"used_dltensor_versioned")
        return capsule


class Result:
    """A result of kvist, on a GPU."""

    def __init__(self, managed):
        self.managed = managed
        tensor = self.tensor = managed.tensor
        self.device = (tensor.device.kind, tensor.device.id)
        self.shape = tuple(tensor.shape[: tensor.ndim])
        found = (tensor.dtype.code, tensor.dtype.bits)
        self.dtype = next(dtype for dtype, name in TYPES.items() if name == found)

    def numpy(self):
        count = int(np.prod(self.shape))
        address = self.tensor.data + self.tensor.byte_offset
        data = ctypes.string_at(address, count * self.dtype.itemsize)
        return np.frombuffer(data, self.dtype).reshape(self.shape)

    def __del__(self):
        self.managed.deleter(ctypes.addressof(self.managed))


def from_dlpack(x):
    """What kvist hands results of this module's tensors to."""
    kind, _ = x.__dlpack_device__()
    assert kind == CUDA and not hasattr(x, "__array_interface__")
    with pytest.raises(BufferError, match=r"dl_device: expected \(2, 0\), .* found \(1, 0\)"):
        x.__dlpack__(dl_device=(1, 0))
    capsule = x.__dlpack__(max_version=(1, 0), stream=STREAM.value)
    pointer = python.PyCapsule_GetPointer(capsule, b"dltensor_versioned")
    python.PyCapsule_SetName(capsule, b"used_dltensor_versioned")
    return Result(Versioned.from_address(pointer))


class ExchangeTable(ctypes.Structure):
    _fields_ = [
        ("major", c_uint32), ("minor", c_uint32), ("previous", c_void_p), ("allocate", c_void_p),
        ("managed_from_object", c_void_p), ("object_from_managed", c_void_p), ("view_of_object", c_void_p),
    ]  # fmt: skip


@ctypes.PYFUNCTYPE(c_int, c_void_p, POINTER(c_void_p))
def object_from_managed(managed, out):
    result = Result(Versioned.from_address(managed))
    python.Py_IncRef(ctypes.py_object(result))
    out[0] = id(result)
    return 0


@ctypes.PYFUNCTYPE(c_int, c_void_p, POINTER(DLTensor))
def view_of_object(address, out):
    out[0] = ctypes.cast(address, ctypes.py_object).value.tensor
    return 0


def address_of(function):
    return ctypes.cast(function, c_void_p).value


TABLE = ExchangeTable(
    1, 0, None, None, None, address_of(object_from_managed), address_of(view_of_object)
)


class Exchanged(Tensor):
    """With C functions, as PyTorch has them."""

    __dlpack_c_exchange_api__ = python.PyCapsule_New(
        ctypes.addressof(TABLE), b"dlpack_exchange_api", None
    )
