// The core includes <onnxruntime_c_api.h>; in ONNX Runtime's framework it stands under the framework's name.
#pragma once
#include <onnxruntime/onnxruntime_c_api.h>
