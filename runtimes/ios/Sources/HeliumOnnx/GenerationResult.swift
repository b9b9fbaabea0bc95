import CHeliumOnnx

/// A text, why it ended, and how long it took.
public struct GenerationResult: Sendable, Equatable {
    public enum Finish: UInt32, Sendable {
        /// `maxNewTokens`.
        case length = 0
        case eos = 1
        /// A stop string; it is not in the text.
        case stop = 2
        /// `cancel()`, or the task was cancelled.
        case cancelled = 3
        /// The context is full.
        case context = 4
    }

    /// The new text.
    public let text: String
    public let finish: Finish
    /// Of the whole text before the first new token.
    public let promptTokens: Int
    /// Of them, those that were not computed again.
    public let reusedTokens: Int
    public let newTokens: Int
    /// That was used.
    public let seed: UInt64
    /// Which stop string ended the text.
    public let stopIndex: Int?
    /// Of the whole call.
    public let seconds: Double
    /// Until the first token was chosen; 0 without one.
    public let firstTokenSeconds: Double
    public let prefillTokensPerSecond: Double
    /// Of the tokens after the first.
    public let decodeTokensPerSecond: Double

    init(_ result: helium_result, text: String) {
        self.text = text
        finish = .init(rawValue: result.finish.rawValue) ?? .cancelled
        promptTokens = Int(result.prompt_tokens)
        reusedTokens = Int(result.reused_tokens)
        newTokens = Int(result.new_tokens)
        seed = result.seed
        stopIndex = result.stop_index < 0 ? nil : Int(result.stop_index)
        seconds = result.seconds
        firstTokenSeconds = result.first_token_seconds
        prefillTokensPerSecond = result.prefill_tokens_per_second
        decodeTokensPerSecond = result.decode_tokens_per_second
    }

    /// Of a generation that was cancelled before it began.
    static let neverBegan: GenerationResult = {
        var result = helium_result()
        result.finish = HELIUM_FINISH_CANCELLED
        result.stop_index = -1
        return GenerationResult(result, text: "")
    }()
}
