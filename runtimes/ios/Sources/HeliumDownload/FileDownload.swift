import Foundation

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif
#if canImport(CryptoKit)
import CryptoKit
#endif

/// One file over HTTP. It grows under another name, from which a later download goes on (a Range request), and gets its own
/// when its size and SHA-256 are those that were expected.
struct FileDownload {
    static let partSuffix = ".part"

    let url: URL
    let file: URL
    let configuration: URLSessionConfiguration
    /// Bytes of the file that are there, as they come.
    let onBytes: @Sendable (Int64) -> Void

    private var part: URL { file.appendingPathExtension(String(Self.partSuffix.dropFirst())) }

    func run(size: Int64, sha256: String) async throws {
        if try isWhole(file, size, sha256) { return onBytes(size) }
        try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
        let goesOn = (sizeOf(part) ?? 0) > 0
        var found = try await receive(limit: size)
        if found != (size, sha256), goesOn {
            // What was there may be the beginning of an older file of this name.
            try FileManager.default.removeItem(at: part)
            found = try await receive(limit: size)
        }
        guard found == (size, sha256) else {
            try FileManager.default.removeItem(at: part)
            throw DownloadError(
                .integrity,
                "\(url.absoluteString) is not what the manifest lists: found \(found.size) bytes of SHA-256 \(found.sha256); expected \(size) of \(sha256); try again, or export the bundle anew")
        }
        try move(part, to: file)
    }

    /// The content, for a small file of unknown size.
    func data(limit: Int64) async throws -> Data {
        try? FileManager.default.removeItem(at: part)
        try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
        let found = try await receive(limit: limit)
        defer { try? FileManager.default.removeItem(at: part) }
        guard found.size <= limit else {
            throw DownloadError(.manifest, "\(url.absoluteString) is too long: found more than \(limit) bytes; check the URL")
        }
        return try Data(contentsOf: part)
    }

    /// The rest of the part, of which there are `limit` bytes at most.
    private func receive(limit: Int64) async throws -> (size: Int64, sha256: String) {
        var held = sizeOf(part) ?? 0
        if held == 0 || held > limit {
            try Data().write(to: part)
            held = 0
        }
        let receiver = FileReceiver(
            handle: try FileHandle(forUpdating: part), digest: try SHA256.of(part), held: held, limit: limit, onBytes: onBytes)
        if held < limit || limit == 0 {
            var request = URLRequest(url: url)
            request.setValue("identity", forHTTPHeaderField: "Accept-Encoding")  // ranges are of the file, not of its compressed form
            if held > 0 { request.setValue("bytes=\(held)-", forHTTPHeaderField: "Range") }
            try await receiver.run(request, configuration)
        }
        return try receiver.finish()
    }

    private func isWhole(_ file: URL, _ size: Int64, _ sha256: String) throws -> Bool {
        guard sizeOf(file) == size else { return false }
        return try SHA256.of(file).hex() == sha256
    }

    private func sizeOf(_ file: URL) -> Int64? {
        (try? FileManager.default.attributesOfItem(atPath: file.path))?[.size].flatMap { ($0 as? NSNumber)?.int64Value }
    }
}

/// In one step, also where a file is there already.
func move(_ file: URL, to target: URL) throws {
    guard rename(file.path, target.path) == 0 else {
        throw CocoaError(.fileWriteUnknown, userInfo: [NSFilePathErrorKey: target.path])
    }
}
