import Foundation
import HeliumDownload

/// Where the bundle is: delivered with the app, or downloaded on first start.
enum ModelFolder {
    static func find(onProgress: @escaping @Sendable (Double) -> Void) async throws -> URL {
        if let delivered = Bundle.main.url(forResource: "model", withExtension: nil), BundleDownload.isComplete(delivered) {
            return delivered
        }
        let support = try FileManager.default.url(for: .applicationSupportDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let folder = support.appendingPathComponent("model", isDirectory: true)
        if BundleDownload.isComplete(folder) { return folder }
        guard let text = Bundle.main.object(forInfoDictionaryKey: "HeliumModelURL") as? String, !text.isEmpty, let url = URL(string: text) else {
            throw NoModel()
        }
        return try await BundleDownload(from: url, to: folder).run { progress in
            onProgress(Double(progress.receivedBytes) / Double(max(1, progress.totalBytes)))
        }
    }
}

struct NoModel: LocalizedError {
    var errorDescription: String? { "This app has no model: put a bundle beside Package.swift as model, or set HeliumModelURL in project.yml." }
}
