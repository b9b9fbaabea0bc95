import CHeliumOnnx
import Foundation

/// A call that failed. `text` says what was found, what was expected, and the remedy.
public struct HeliumError: Error, Sendable, Equatable {
    /// The cases of `helium_status`.
    public enum Status: UInt32, Sendable, CaseIterable {
        /// A value that the function cannot take.
        case invalidArgument = 1
        /// The model or conversation is closed.
        case closed = 2
        /// Also: the memory plan is over the limit that was given.
        case outOfMemory = 3
        /// Another call is using the conversation.
        case busy = 4
        /// ONNX Runtime cannot be opened, is too old, or failed.
        case runtime = 5
        /// No bundle, or one that this library does not run.
        case bundle = 6
        /// A file is not what was exported: truncated, changed, missing.
        case integrity = 7
        /// Written by a newer helium-onnx.
        case formatVersion = 8
        /// `tokenizer.json` is malformed, or none of Helium's.
        case tokenizer = 9
        /// No token in the prompt.
        case prompt = 10
        /// Prompt and new tokens do not fit the context.
        case contextOverflow = 11
        /// The model gave NaN or infinite logits.
        case logits = 12
        /// A saved conversation that is damaged, or of another bundle.
        case sessionFile = 13
        /// A file cannot be read or written.
        case io = 14
        /// A mistake of this library: please report it.
        case `internal` = 15
    }

    public let status: Status
    public let text: String
}

extension HeliumError: LocalizedError, CustomStringConvertible {
    public var errorDescription: String? { text }
    public var description: String { "\(String(cString: helium_status_name(helium_status(status.rawValue)))): \(text)" }
}

/// Throws what a call of the C interface answered. It is for the thread of that call: the text is the thread's.
func check(_ status: helium_status) throws {
    guard status != HELIUM_OK else { return }
    throw HeliumError(status: .init(rawValue: status.rawValue) ?? .internal, text: String(cString: helium_error_text()))
}
