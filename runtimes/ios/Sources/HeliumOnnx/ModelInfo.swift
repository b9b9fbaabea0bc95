import CHeliumOnnx

/// What was opened, and what it takes.
public struct ModelInfo: Sendable, Equatable {
    public let vocabSize: Int
    public let contextLength: Int
    public let threads: Int
    /// `.native` or `.onnxRuntime`.
    public let kernels: ModelOptions.Kernels
    /// The bundle's SHA-256, in hex.
    public let bundle: String
    /// "cpu-int4".
    public let recipe: String
    /// The version of ONNX Runtime: "1.24.2".
    public let onnxRuntime: String
    public let loadSeconds: Double
    /// Bytes of the weights' file.
    public let weightsBytes: Int64
    /// Bytes of them in memory now; `nil` where the system does not tell.
    public let weightsResident: Int64?
    /// Bytes that the process had in memory at most so far; `nil` where the system does not tell.
    public let peakMemory: Int64?

    init(_ info: helium_model_info) {
        vocabSize = Int(info.vocab_size)
        contextLength = Int(info.context_length)
        threads = Int(info.threads)
        kernels = .init(rawValue: info.kernels.rawValue) ?? .onnxRuntime
        bundle = text(of: info.bundle)
        recipe = text(of: info.recipe)
        onnxRuntime = text(of: info.onnxruntime)
        loadSeconds = info.load_seconds
        weightsBytes = info.weights_bytes
        weightsResident = known(info.weights_resident)
        peakMemory = known(info.peak_memory)
    }
}

/// Bytes that the system told, or the core's -1.
func known(_ bytes: Int64) -> Int64? { bytes < 0 ? nil : bytes }

/// An array of C characters, which Swift sees as a tuple, up to its NUL.
private func text<Characters>(of characters: Characters) -> String {
    withUnsafeBytes(of: characters) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
}
