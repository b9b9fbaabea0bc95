import CHeliumOnnx
import Foundation
import XCTest

@testable import HeliumOnnx

/// Where the tests' files are: HELIUM_BUNDLE, a bundle of samples/helium-docs-7m; HELIUM_EXPECTED, what the C sample
/// generates with it (Tests/run.py writes it); HELIUM_VECTORS, tests/vectors of the repository.
func file(_ variable: String) throws -> URL {
    let path = ProcessInfo.processInfo.environment[variable]
    guard let path else { throw XCTSkip("$\(variable) is not set") }
    return URL(fileURLWithPath: path)
}

func openModel(_ change: (inout ModelOptions) -> Void = { _ in }) async throws -> HeliumModel {
    var options = ModelOptions()
    change(&options)
    return try await HeliumModel.open(at: file("HELIUM_BUNDLE"), options: options)
}

/// Runs for seconds, unless it is ended.
let long: GenerationRequest = {
    var request = GenerationRequest("Once upon a time")
    request.maxNewTokens = 2000
    request.ignoreEos = true
    return request
}()

func short(_ prompt: String, tokens: Int = 24) -> GenerationRequest {
    var request = GenerationRequest(prompt)
    request.maxNewTokens = tokens
    request.ignoreEos = true
    return request
}

func assertThrows<Value>(
    _ status: HeliumError.Status, _ body: () async throws -> Value, file: StaticString = #filePath, line: UInt = #line
) async {
    do {
        _ = try await body()
        XCTFail("nothing was thrown", file: file, line: line)
    } catch let error as HeliumError {
        XCTAssertEqual(error.status, status, error.text, file: file, line: line)
        XCTAssertFalse(error.text.isEmpty, file: file, line: line)
    } catch {
        XCTFail("\(error)", file: file, line: line)
    }
}

/// A folder that is deleted when the test ends.
func temporaryFolder(of test: XCTestCase) throws -> URL {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("helium-" + UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    test.addTeardownBlock { try? FileManager.default.removeItem(at: folder) }
    return folder
}
