import CHeliumOnnx
import Foundation

/// How a model is opened. Zeros and `nil` leave the choice to the library.
public struct ModelOptions: Sendable, Equatable {
    public enum Kernels: UInt32, Sendable {
        /// The library's own where the processor has vectors for them (x86-64), else ONNX Runtime's.
        case automatic = 0
        /// The library's own, or an error.
        case native = 1
        case onnxRuntime = 2
    }

    public enum MemoryLimit: Sendable, Equatable {
        case none
        /// What the system can give this process now.
        case available
        case bytes(Int64)
    }

    /// Path or name of ONNX Runtime's library. `nil` in an app, where it is linked in.
    public var onnxRuntime: String?
    /// 0: the physical cores, of unequal ones the fast ones.
    public var threads = 0
    /// Threads wait for each other by spinning (faster, warmer) or asleep.
    public var spin = true
    /// The most tokens of a conversation; 0: the model's.
    public var contextLength = 0
    public var kernels = Kernels.automatic
    /// Hash every file against the manifest's SHA-256 first.
    public var checkDigests = false
    /// A bundle whose memory plan needs more is refused before it is loaded.
    public var memoryLimit = MemoryLimit.none

    public init() {}

    func withC<Result>(_ body: (UnsafePointer<helium_model_options>) throws -> Result) rethrows -> Result {
        var options = helium_model_options()
        helium_model_options_init(&options)
        options.threads = Int32(clamping: threads)
        options.spin = spin ? 1 : 0
        options.context_length = Int64(contextLength)
        options.kernels = helium_kernels(kernels.rawValue)
        options.check_digests = checkDigests ? 1 : 0
        switch memoryLimit {
        case .none: options.memory_limit = 0
        case .available: options.memory_limit = Int64(HELIUM_MEMORY_AVAILABLE)
        case .bytes(let bytes): options.memory_limit = max(1, bytes)  // 0 would be no limit
        }
        guard let onnxRuntime else { return try body(&options) }
        return try onnxRuntime.withCString { name in
            options.onnxruntime = name
            return try body(&options)
        }
    }
}
