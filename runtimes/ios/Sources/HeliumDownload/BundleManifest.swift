import Foundation

/// What a download needs of `helium.json`: the list of files. The core reads and checks the rest.
struct BundleManifest: Decodable {
    struct File: Decodable, Equatable {
        let path: String
        let size: Int64
        /// In hex.
        let sha256: String
    }

    static let name = "helium.json"
    static let newestFormat = 1

    let format_version: Int
    let files: [File]

    init(_ json: Data, from url: URL) throws {
        do {
            self = try JSONDecoder().decode(BundleManifest.self, from: json)
        } catch {
            throw DownloadError(.manifest, "\(url.absoluteString) is not a bundle's manifest: found \(json.count) bytes that do not read as one; check the URL")
        }
        guard format_version <= Self.newestFormat else {
            throw DownloadError(
                .manifest,
                "\(url.absoluteString) was written by a newer helium-onnx: found format_version \(format_version); expected \(Self.newestFormat) at most; update the app")
        }
        for file in files where !file.isSound {
            throw DownloadError(.manifest, "\(url.absoluteString) lists a file that no bundle has: found \(file.path.debugDescription); export the bundle anew")
        }
    }
}

extension BundleManifest.File {
    /// A path that stays in its folder, and sizes that can be.
    fileprivate var isSound: Bool {
        let parts = path.split(separator: "/", omittingEmptySubsequences: false)
        let isPlain = path.unicodeScalars.allSatisfy { $0.value >= 0x20 && $0 != "\\" && $0 != ":" && $0.value != 0x7f }
        return isPlain && parts.allSatisfy { !$0.isEmpty && $0 != "." && $0 != ".." } && path != BundleManifest.name
            && !path.hasSuffix(FileDownload.partSuffix) && size >= 0 && sha256.count == 64
    }
}
