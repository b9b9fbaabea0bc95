import CHeliumOnnx

/// How text and token ids are made of each other.
public struct EncodeOptions: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Without `<s>` in front.
    public static let noBos = EncodeOptions(HELIUM_ENCODE_NO_BOS)
    /// "</s>" in the text is the control token: only for text that no user wrote.
    public static let parseSpecial = EncodeOptions(HELIUM_ENCODE_PARSE_SPECIAL)
    /// The middle of a text: no `<s>`, and the first word's space as it stands.
    public static let continues = EncodeOptions(HELIUM_ENCODE_CONTINUE)

    private init(_ flag: helium_encode_flags) { rawValue = flag.rawValue }
}
