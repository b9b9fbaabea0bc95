// swift-tools-version: 5.9
// Helium on ONNX Runtime for apps: HeliumOnnx runs a bundle, HeliumDownload fetches one.
//
// In the repository two links lead to the core's sources (runtimes/c); in a packaged folder copies stand in their place.
import PackageDescription

#if os(Linux)
// For tests: ONNX Runtime's header comes from `swift build -Xcxx -I...`, its library from $HELIUM_ONNXRUNTIME.
let runtimePackages: [Package.Dependency] = []
let runtimeProducts: [Target.Dependency] = []
let runtimeSettings: [CXXSetting] = []
#else
// A static framework within the app. The core looks symbols up at run time, which finds none there once an archive's
// symbols are stripped: linked_runtime.cpp answers instead.
let runtimePackages: [Package.Dependency] = [
    .package(url: "https://github.com/microsoft/onnxruntime-swift-package-manager", from: "1.24.2")
]
let runtimeProducts: [Target.Dependency] = [
    .product(name: "onnxruntime", package: "onnxruntime-swift-package-manager")
]
let runtimeSettings: [CXXSetting] = [
    .headerSearchPath("apple"),
    .define("dlsym", to: "helium_dlsym"),
]
#endif

let package = Package(
    name: "HeliumOnnx",
    platforms: [.iOS(.v15), .macOS(.v14)],  // those of ONNX Runtime's package
    products: [
        .library(name: "HeliumOnnx", targets: ["HeliumOnnx"]),
        .library(name: "HeliumDownload", targets: ["HeliumDownload"]),
    ],
    dependencies: runtimePackages,
    targets: [
        .target(
            name: "CHeliumOnnx",
            dependencies: runtimeProducts,
            exclude: ["src/no_generic_kernels.cpp"],  // no_kernels.cpp is compiled: on arm64 ONNX Runtime's kernels run
            cxxSettings: [
                .headerSearchPath("src"),
                .define("HELIUM_ONNX_VERSION", to: "\"0.1.0\""),
                // A plain name that other static libraries (onnxruntime_extensions) have too.
                .define("RegisterCustomOps", to: "helium_register_custom_ops"),
            ] + runtimeSettings
        ),
        .target(
            name: "HeliumOnnx",
            dependencies: ["CHeliumOnnx"],
            resources: [.copy("PrivacyInfo.xcprivacy")]
        ),
        .target(name: "HeliumDownload"),
        .testTarget(name: "HeliumOnnxTests", dependencies: ["HeliumOnnx", "CHeliumOnnx"]),
        .testTarget(name: "HeliumDownloadTests", dependencies: ["HeliumDownload"]),
    ],
    cxxLanguageStandard: .cxx17
)
