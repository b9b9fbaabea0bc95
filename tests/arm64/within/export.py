"""An export that a test on ARM64 asked for, by this machine's Python: (checkpoint, out, options), pickled, on stdin."""

import pickle
import sys

import helium_onnx

checkpoint, out, options = pickle.load(sys.stdin.buffer)
helium_onnx.export(checkpoint, out, **options)
