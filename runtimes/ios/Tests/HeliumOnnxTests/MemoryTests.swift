import XCTest

import HeliumOnnx

final class MemoryTests: XCTestCase {
    func testPlan() async throws {
        let bundle = try file("HELIUM_BUNDLE")
        let plan = try await HeliumModel.memoryPlan(at: bundle)
        XCTAssertGreaterThan(plan.weights, 1_000_000)
        XCTAssertGreaterThan(plan.cache, 0)
        XCTAssertGreaterThan(plan.working, 0)
        XCTAssertEqual(plan.total, plan.weights + plan.privateWeights + plan.cache + plan.working)
        XCTAssertGreaterThan(plan.available ?? 0, 0)

        var options = ModelOptions()
        options.contextLength = 256
        let smaller = try await HeliumModel.memoryPlan(at: bundle, options: options)
        XCTAssertEqual(smaller.cache * 8, plan.cache)  // the model's context is 2048
    }

    func testInfo() async throws {
        let model = try await openModel { $0.contextLength = 512; $0.threads = 2; $0.memoryLimit = .available; $0.checkDigests = true }
        let info = try model.info()
        XCTAssertEqual(info.vocabSize, 6000)
        XCTAssertEqual(info.contextLength, 512)
        XCTAssertEqual(info.threads, 2)
        XCTAssertEqual(info.kernels, .onnxRuntime)
        XCTAssertEqual(info.recipe, "cpu-int4")
        XCTAssertEqual(info.bundle.count, 64)
        XCTAssertTrue(info.onnxRuntime.hasPrefix("1."), info.onnxRuntime)
        XCTAssertGreaterThan(info.weightsBytes, 1_000_000)
        XCTAssertGreaterThan(info.peakMemory ?? 0, info.weightsBytes)
        XCTAssertLessThanOrEqual(info.weightsResident ?? 0, info.weightsBytes + 65536)
    }
}
