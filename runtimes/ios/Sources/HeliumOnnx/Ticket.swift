import Foundation

/// A handle of the C interface. It is a ticket, not an address: any thread may hold one, and one that was closed is told
/// from one that is open.
struct Ticket: @unchecked Sendable {
    let handle: OpaquePointer
}

extension URL {
    /// The path as the file system has it.
    func withPath<Result>(_ body: (UnsafePointer<CChar>) throws -> Result) throws -> Result {
        try withUnsafeFileSystemRepresentation { path in
            guard isFileURL, let path else {
                throw HeliumError(status: .invalidArgument, text: "\(absoluteString) is no path: found a URL of another kind; expected a file URL")
            }
            return try body(path)
        }
    }
}
