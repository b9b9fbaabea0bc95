import Foundation

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// Fetches a bundle from a server, file by file as its `helium.json` lists them, each held against its size and SHA-256.
///
/// A download that was ended goes on where it was. `helium.json` is written last: a folder that has one is complete.
///
///     let folder = try await BundleDownload(from: url, to: folder).run { progress in ... }
///     let model = try await HeliumModel.open(at: folder)
public struct BundleDownload: Sendable {
    public struct Progress: Sendable, Equatable {
        public let receivedBytes: Int64
        public let totalBytes: Int64
    }

    private static let largestManifest: Int64 = 64 << 20

    private let base: URL
    private let folder: URL
    private let configuration: URLSessionConfiguration

    /// `base` is the URL of the bundle's folder.
    public init(from base: URL, to folder: URL, configuration: URLSessionConfiguration = .default) {
        self.base = base
        self.folder = folder
        self.configuration = configuration
    }

    public static func isComplete(_ folder: URL) -> Bool {
        FileManager.default.fileExists(atPath: folder.appendingPathComponent(BundleManifest.name).path)
    }

    /// Fetches what is not there yet. Throws `DownloadError`, what the file system throws, or `CancellationError`; called
    /// again it goes on. `onProgress` is called on another thread.
    @discardableResult
    public func run(onProgress: @escaping @Sendable (Progress) -> Void = { _ in }) async throws -> URL {
        if Self.isComplete(folder) { return folder }
        let manifestFile = download(BundleManifest.name) { _ in }
        let json = try await manifestFile.data(limit: Self.largestManifest)
        let manifest = try BundleManifest(json, from: manifestFile.url)

        let total = manifest.files.reduce(Int64(0)) { $0 + $1.size }
        var before: Int64 = 0
        for record in manifest.files {
            try Task.checkCancellation()
            let start = before
            let file = download(record.path) { onProgress(Progress(receivedBytes: start + $0, totalBytes: total)) }
            try await file.run(size: record.size, sha256: record.sha256.lowercased())
            before += record.size
        }
        try json.write(to: folder.appendingPathComponent(BundleManifest.name), options: .atomic)
        #if canImport(Darwin)
        // It can be fetched again: not for the user's backup.
        var values = URLResourceValues()
        values.isExcludedFromBackup = true
        var excluded = folder
        try excluded.setResourceValues(values)
        #endif
        return folder
    }

    private func download(_ path: String, onBytes: @escaping @Sendable (Int64) -> Void) -> FileDownload {
        FileDownload(
            url: base.appendingPathComponent(path), file: folder.appendingPathComponent(path), configuration: configuration, onBytes: onBytes)
    }
}
