import CHeliumOnnx

/// What a bundle will need, in bytes.
public struct MemoryPlan: Sendable, Equatable {
    /// Mapped from the bundle's files: clean pages, which the system may take back and does not count as the app's.
    public let weights: Int64
    /// Copies that ONNX Runtime packs for itself (an estimate).
    public let privateWeights: Int64
    /// Keys and values of one full conversation.
    public let cache: Int64
    /// Activations, logits, tokenizer, ONNX Runtime itself (an estimate).
    public let working: Int64
    /// Of the above.
    public let total: Int64
    /// What the system can give this process now; `nil` where it does not tell.
    public let available: Int64?

    init(_ plan: helium_memory_plan) {
        weights = plan.weights
        privateWeights = plan.private_weights
        cache = plan.cache
        working = plan.working
        total = plan.total
        available = known(plan.available)
    }
}
