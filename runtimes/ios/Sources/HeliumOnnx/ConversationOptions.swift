import CHeliumOnnx

public struct ConversationOptions: Sendable, Equatable {
    public enum Overflow: UInt32, Sendable {
        /// A prompt that leaves no room is refused; a text ends where the context is full.
        case error = 0
        /// The first token and the later half of the others are kept, and read again.
        case slide = 1
    }

    /// The most tokens; 0: the model's.
    public var contextLength = 0
    public var overflow = Overflow.error

    public init() {}

    func withC<Result>(_ body: (UnsafePointer<helium_conversation_options>) throws -> Result) rethrows -> Result {
        var options = helium_conversation_options()
        helium_conversation_options_init(&options)
        options.context_length = Int64(contextLength)
        options.overflow = helium_overflow(overflow.rawValue)
        return try body(&options)
    }
}
