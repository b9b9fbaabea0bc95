import XCTest

import HeliumOnnx

final class ErrorTests: XCTestCase {
    func testWrongPath() async throws {
        await assertThrows(.bundle) { try await HeliumModel.open(at: URL(fileURLWithPath: "/no/such/folder")) }
        await assertThrows(.bundle) { try await HeliumModel.memoryPlan(at: URL(fileURLWithPath: "/")) }
        await assertThrows(.invalidArgument) { try await HeliumModel.open(at: URL(string: "https://example.org/bundle")!) }
    }

    func testErrorSaysWhatWasFound() async throws {
        do {
            _ = try await HeliumModel.open(at: URL(fileURLWithPath: "/no/such/folder"))
            XCTFail("nothing was thrown")
        } catch {
            XCTAssertTrue(error.localizedDescription.contains("/no/such/folder"), error.localizedDescription)
        }
    }

    func testDamagedBundle() async throws {
        let copy = try temporaryFolder(of: self).appendingPathComponent("bundle")
        try FileManager.default.copyItem(at: file("HELIUM_BUNDLE"), to: copy)
        let weights = copy.appendingPathComponent("onnx/model.onnx_data")
        let handle = try FileHandle(forUpdating: weights)
        try handle.seek(toOffset: 1000)
        try handle.write(contentsOf: Data([0x55, 0xaa]))
        try handle.close()
        var options = ModelOptions()
        options.checkDigests = true
        await assertThrows(.integrity) { [options] in try await HeliumModel.open(at: copy, options: options) }
        try FileManager.default.removeItem(at: weights)
        await assertThrows(.integrity) { try await HeliumModel.open(at: copy) }
    }

    func testImpossibleOptions() async throws {
        await assertThrows(.invalidArgument) { try await openModel { $0.threads = -1 } }
        await assertThrows(.outOfMemory) { try await openModel { $0.memoryLimit = .bytes(1) } }
        await assertThrows(.outOfMemory) { try await openModel { $0.memoryLimit = .bytes(0) } }
        await assertThrows(.bundle) { try await openModel { $0.kernels = .native } }  // none are compiled in
        let model = try await openModel()
        var options = ConversationOptions()
        options.contextLength = 1 << 30
        await assertThrows(.invalidArgument) { [options] in try HeliumConversation(model, options: options) }
    }

    func testUseAfterClose() async throws {
        let model = try await openModel()
        let conversation = try HeliumConversation(model)
        model.close()
        model.close()
        await assertThrows(.closed) { try model.info() }
        await assertThrows(.closed) { try model.encode("a") }
        await assertThrows(.closed) { try HeliumConversation(model) }
        let result = try await conversation.generate(short("Once", tokens: 3))  // conversations go on
        XCTAssertEqual(result.newTokens, 3)
        conversation.close()
        conversation.close()
        conversation.cancel()
        await assertThrows(.closed) { try await conversation.generate(short("Once")) }
        await assertThrows(.closed) { try await conversation.ids() }
        await assertThrows(.closed) { for try await _ in conversation.stream(short("Once")) {} }
    }

    func testClosedWhileItGenerates() async throws {
        let conversation = try await HeliumConversation(openModel())
        await assertThrows(.closed) { try await conversation.generate(long, onText: { _ in conversation.close() }) }
    }

    func testBusy() async throws {
        let conversation = try await HeliumConversation(openModel())
        let stream = conversation.stream(long)
        await assertThrows(.busy) { try await conversation.generate(short("Once")) }
        await assertThrows(.busy) { try await conversation.ids() }
        await assertThrows(.busy) { for try await _ in conversation.stream(short("Once")) {} }
        withExtendedLifetime(stream) { conversation.cancel() }
    }

    func testPrompts() async throws {
        let conversation = try await HeliumConversation(openModel())
        await assertThrows(.prompt) { try await conversation.generate(.more) }
        await assertThrows(.prompt) { try await conversation.generate(GenerationRequest(ids: [])) }
        await assertThrows(.prompt) { try await conversation.generate(GenerationRequest(ids: [-1])) }
        await assertThrows(.contextOverflow) { try await conversation.generate(short(String(repeating: "word ", count: 5000))) }
        var request = short("Once")
        request.temperature = -1
        await assertThrows(.invalidArgument) { [request] in try await conversation.generate(request) }
        request = short("Once", tokens: -1)
        await assertThrows(.invalidArgument) { [request] in try await conversation.generate(request) }
    }
}
