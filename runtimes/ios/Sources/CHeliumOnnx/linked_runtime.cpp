// For apps that ONNX Runtime is linked into: its one symbol is bound by the linker.
//
// runtime.cpp finds OrtGetApiBase with dlsym(RTLD_DEFAULT, ...). In an app's executable that works until the app is
// archived: then dead code and symbols are stripped, and the app in the store finds nothing. So Package.swift names dlsym
// helium_dlsym for this target, and the reference below keeps the function.
#if defined(dlsym)
#undef dlsym

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstring>

extern "C" void* helium_dlsym(void* library, const char* name);

extern "C" void* helium_dlsym(void* library, const char* name) {
    if (library == RTLD_DEFAULT && std::strcmp(name, "OrtGetApiBase") == 0) return (void*)&OrtGetApiBase;
    return dlsym(library, name);
}

#endif
