import Foundation

/// A download that failed. What has arrived is kept, and the next one goes on there.
public struct DownloadError: Error, Sendable, Equatable {
    public enum Kind: Sendable {
        /// The server answered with another status than success.
        case status
        /// The connection failed, or ended early.
        case connection
        /// `helium.json` is none, or is of a newer format.
        case manifest
        /// A file is not what the manifest lists; what arrived of it was deleted.
        case integrity
    }

    public let kind: Kind
    public let text: String

    init(_ kind: Kind, _ text: String) {
        self.kind = kind
        self.text = text
    }
}

extension DownloadError: LocalizedError, CustomStringConvertible {
    public var errorDescription: String? { text }
    public var description: String { text }
}
