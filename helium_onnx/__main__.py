"""``python -m helium_onnx`` is ``helium-onnx``."""

from helium_onnx.cli import main

if __name__ == "__main__":
    main()
