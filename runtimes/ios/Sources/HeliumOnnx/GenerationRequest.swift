import CHeliumOnnx

/// What to continue, and how tokens are chosen. Greedy unless a temperature is given.
public struct GenerationRequest: Sendable, Equatable {
    public enum Prompt: Sendable, Equatable {
        case text(String)
        /// Token ids, with `<s>`.
        case ids([Int32])
    }

    public enum PromptMode: UInt32, Sendable {
        /// The prompt is the whole text; what the conversation holds of its beginning is not computed again.
        case whole = 0
        /// The prompt goes on where the conversation is.
        case append = 1
    }

    /// `nil` with `promptMode` `.append`: just go on.
    public var prompt: Prompt?
    public var promptMode: PromptMode
    /// Names of control tokens in the prompt's text count as such: only for text that no user wrote.
    public var parseSpecial = false
    /// 0 only reads the prompt.
    public var maxNewTokens = 256
    /// 0: greedy.
    public var temperature = 0.0
    /// 0: all.
    public var topK = 0
    /// 1: all.
    public var topP = 1.0
    /// 0: all.
    public var minP = 0.0
    /// 1: none.
    public var repetitionPenalty = 1.0
    /// The same seed gives the same tokens, also in Python. `nil`: the conversation's random numbers go on.
    public var seed: UInt64?
    public var ignoreEos = false
    /// Texts before which the text ends.
    public var stop: [String] = []

    public init(_ text: String, promptMode: PromptMode = .whole) {
        prompt = .text(text)
        self.promptMode = promptMode
    }

    public init(ids: [Int32], promptMode: PromptMode = .whole) {
        prompt = .ids(ids)
        self.promptMode = promptMode
    }

    /// Goes on where the conversation is, without new text.
    public static var more: GenerationRequest {
        var request = GenerationRequest(ids: [], promptMode: .append)
        request.prompt = nil
        return request
    }

    /// The request of the C interface, whose pointers are good within `body`.
    func withC<Result>(_ body: (inout helium_request) throws -> Result) throws -> Result {
        var request = helium_request()
        helium_request_init(&request)
        request.prompt_mode = helium_prompt_mode(promptMode.rawValue)
        request.parse_special = parseSpecial ? 1 : 0
        request.max_new_tokens = Int64(maxNewTokens)
        request.temperature = temperature
        request.top_k = Int64(topK)
        request.top_p = topP
        request.min_p = minP
        request.repetition_penalty = repetitionPenalty
        request.seed = seed ?? 0
        request.has_seed = seed == nil ? 0 : 1
        request.ignore_eos = ignoreEos ? 1 : 0
        return try withCStrings(stop) { stop in
            try stop.withUnsafeBufferPointer { stop in
                request.stop = stop.baseAddress
                request.stop_count = stop.count
                switch prompt {
                case nil:
                    return try body(&request)
                case .text(let text):
                    return try text.withCString { utf8 in
                        request.prompt = utf8
                        request.prompt_bytes = text.utf8.count  // a NUL in the text is text
                        return try body(&request)
                    }
                case .ids(let ids):
                    return try ids.withUnsafeBufferPointer { ids in
                        request.prompt_ids = ids.baseAddress
                        request.prompt_count = ids.count
                        return try body(&request)
                    }
                }
            }
        }
    }
}

/// Texts that end with a NUL, good within `body`.
private func withCStrings<Result>(_ texts: [String], _ body: ([UnsafePointer<CChar>?]) throws -> Result) throws -> Result {
    var bytes: [CChar] = []
    var starts: [Int] = []
    for text in texts {
        guard !text.utf8.contains(0) else {
            throw HeliumError(status: .invalidArgument, text: "a stop string has a NUL: C would end it there; leave the NUL out")
        }
        starts.append(bytes.count)
        bytes += text.utf8CString
    }
    return try bytes.withUnsafeBufferPointer { bytes in
        try body(starts.map { start in bytes.baseAddress.map { $0 + start } })
    }
}
