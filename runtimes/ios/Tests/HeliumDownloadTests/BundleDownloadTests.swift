import Foundation
import XCTest

@testable import HeliumDownload

#if canImport(CryptoKit)
import CryptoKit
#endif
#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

final class BundleDownloadTests: XCTestCase {
    private let server = FakeServer()
    private let base = URL(string: "https://models.example/helium/")!
    private var folder: URL!
    private let weights = Data((0..<10_000).map { UInt8(truncatingIfNeeded: $0 &* 31 ^ $0 >> 5) })
    private let config = Data("{}".utf8)

    override func setUpWithError() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("helium-" + UUID().uuidString)
        serve(["config.json": config, "onnx/model.onnx_data": weights, "empty": Data()])
    }

    override func tearDownWithError() throws { try? FileManager.default.removeItem(at: folder) }

    func testFilesArrive() async throws {
        let received = Received()
        let got = try await download(received)
        XCTAssertEqual(got, folder)
        XCTAssertEqual(try content("config.json"), config)
        XCTAssertEqual(try content("onnx/model.onnx_data"), weights)
        XCTAssertEqual(try content("empty"), Data())
        XCTAssertEqual(try content("helium.json"), server.files["/helium/helium.json"])
        XCTAssertTrue(BundleDownload.isComplete(folder))
        XCTAssertEqual(try names(), ["config.json", "empty", "helium.json", "onnx", "onnx/model.onnx_data"])
        XCTAssertEqual(received.last, .init(receivedBytes: 10_002, totalBytes: 10_002))
    }

    func testWhatIsCompleteIsNotFetchedAgain() async throws {
        try await download()
        let before = server.requests.count
        try await download()
        XCTAssertEqual(server.requests.count, before)
    }

    func testGoesOnWhereItWas() async throws {
        server.breaksAfter = 4000
        await assertThrows(.connection) { try await self.download() }
        XCTAssertFalse(BundleDownload.isComplete(folder))
        XCTAssertEqual(try content("onnx/model.onnx_data.part"), weights.prefix(4000))
        await assertThrows(.connection) { try await self.download() }
        server.breaksAfter = nil
        try await download()
        XCTAssertEqual(try content("onnx/model.onnx_data"), weights)
        let ranges = server.requests.filter { $0.contains("data bytes") }
        XCTAssertEqual(ranges, ["/helium/onnx/model.onnx_data bytes=4000-", "/helium/onnx/model.onnx_data bytes=8000-"])
        XCTAssertEqual(server.requests.filter { $0.contains("config") }.count, 1)  // it was there
    }

    func testServerWithoutRanges() async throws {
        server.breaksAfter = 4000
        await assertThrows(.connection) { try await self.download() }
        server.breaksAfter = nil
        server.knowsRanges = false
        try await download()
        XCTAssertEqual(try content("onnx/model.onnx_data"), weights)
    }

    func testPartOfAnotherFileIsFetchedAnew() async throws {
        for part in [Data(repeating: 1, count: 500), Data(repeating: 1, count: 10_000), Data(repeating: 1, count: 20_000)] {
            try FileManager.default.createDirectory(at: folder.appendingPathComponent("onnx"), withIntermediateDirectories: true)
            try part.write(to: folder.appendingPathComponent("onnx/model.onnx_data.part"))
            try await download()
            XCTAssertEqual(try content("onnx/model.onnx_data"), weights)
            try FileManager.default.removeItem(at: folder)
        }
    }

    func testPartThatIsLongerThanTheServersFile() async throws {
        try FileManager.default.createDirectory(at: folder.appendingPathComponent("onnx"), withIntermediateDirectories: true)
        try weights.prefix(9000).write(to: folder.appendingPathComponent("onnx/model.onnx_data.part"))
        server.files["/helium/onnx/model.onnx_data"] = weights.prefix(6000)
        await assertThrows(.integrity) { try await self.download() }
        serve(["onnx/model.onnx_data": weights])
        try await download()
        XCTAssertEqual(try content("onnx/model.onnx_data"), weights)
    }

    func testChangedFileIsRefused() async throws {
        for changed in [Data(weights.reversed()), weights.dropLast(), weights + [0]] {
            server.files["/helium/onnx/model.onnx_data"] = changed
            await assertThrows(.integrity) { try await self.download() }
            XCTAssertFalse(BundleDownload.isComplete(folder))
            XCTAssertEqual(try names(), ["config.json", "empty", "onnx"])
        }
    }

    func testOlderFileIsReplaced() async throws {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Data("[]".utf8).write(to: folder.appendingPathComponent("config.json"))  // of the same size
        try await download()
        XCTAssertEqual(try content("config.json"), config)
    }

    func testStatus() async throws {
        server.status = 503
        await assertThrows(.status) { try await self.download() }
        server.status = nil
        server.files["/helium/config.json"] = nil
        await assertThrows(.status) { try await self.download() }
    }

    func testManifestsThatAreNone() async throws {
        let digest = String(repeating: "0", count: 64)
        let manifests = [
            "", "<html>", "[]", #"{"format_version": 1}"#, #"{"format_version": 2, "files": []}"#,
        ] + ["../x", "/x", "a/../x", "", "a//b", "a\\\\b", "C:x", "helium.json", "a.part", "."].map {
            #"{"format_version": 1, "files": [{"path": "\#($0)", "size": 1, "sha256": "\#(digest)"}]}"#
        } + [
            #"{"format_version": 1, "files": [{"path": "x", "size": -1, "sha256": "\#(digest)"}]}"#,
            #"{"format_version": 1, "files": [{"path": "x", "size": 1, "sha256": "0"}]}"#,
        ]
        for manifest in manifests {
            server.files["/helium/helium.json"] = Data(manifest.utf8)
            await assertThrows(.manifest, manifest) { try await self.download() }
            XCTAssertEqual(try names(), [], manifest)
        }
    }

    func testCancelledTask() async throws {
        let cancelled = BundleDownload(from: base, to: folder, configuration: server.configuration())
        let task = Task {
            while !Task.isCancelled { await Task.yield() }
            try await cancelled.run()
        }
        task.cancel()
        do {
            _ = try await task.value
            XCTFail("nothing was thrown")
        } catch {
            XCTAssertTrue(error is CancellationError, "\(error)")
        }
        try await download()
    }

    /// A real server with a real bundle, where Tests/run.py gives one.
    func testRealServer() async throws {
        guard let url = ProcessInfo.processInfo.environment["HELIUM_BUNDLE_URL"] else { throw XCTSkip("$HELIUM_BUNDLE_URL is not set") }
        try await BundleDownload(from: URL(string: url)!, to: folder).run()
        let bundle = URL(fileURLWithPath: ProcessInfo.processInfo.environment["HELIUM_BUNDLE"]!)
        for name in try names() where !name.hasSuffix("onnx") || name.contains(".") {
            XCTAssertEqual(try content(name), try Data(contentsOf: bundle.appendingPathComponent(name)), name)
        }
    }

    // MARK: -

    @discardableResult
    private func download(_ received: Received = Received()) async throws -> URL {
        try await BundleDownload(from: base, to: folder, configuration: server.configuration()).run { received.last = $0 }
    }

    private func serve(_ files: [String: Data]) {
        let records = files.sorted { $0.key < $1.key }.map { path, data -> String in
            var digest = SHA256()
            digest.update(data: data)
            return #"{"path": "\#(path)", "size": \#(data.count), "sha256": "\#(digest.hex())"}"#
        }
        server.files["/helium/helium.json"] = Data(#"{"format_version": 1, "files": [\#(records.joined(separator: ", "))]}"#.utf8)
        for (path, data) in files { server.files["/helium/" + path] = data }
    }

    private func content(_ name: String) throws -> Data { try Data(contentsOf: folder.appendingPathComponent(name)) }

    private func names() throws -> [String] { (try? FileManager.default.subpathsOfDirectory(atPath: folder.path).sorted()) ?? [] }

    private func assertThrows(
        _ kind: DownloadError.Kind, _ message: String = "", _ body: () async throws -> URL, file: StaticString = #filePath, line: UInt = #line
    ) async {
        do {
            _ = try await body()
            XCTFail("nothing was thrown: \(message)", file: file, line: line)
        } catch {
            XCTAssertEqual((error as? DownloadError)?.kind, kind, "\(error) \(message)", file: file, line: line)
        }
    }
}

private final class Received: @unchecked Sendable {
    private let lock = NSLock()
    private var progress: BundleDownload.Progress?

    var last: BundleDownload.Progress? {
        get { lock.withLock { progress } }
        set { lock.withLock { progress = newValue } }
    }
}
