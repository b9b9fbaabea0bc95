import XCTest

import HeliumOnnx

final class SavedConversationTests: XCTestCase {
    func testGoesOnWithTheSameTokens() async throws {
        let saved = try temporaryFolder(of: self).appendingPathComponent("é saved")
        let model = try await openModel()
        let conversation = try HeliumConversation(model)
        var first = short("Once upon a time", tokens: 20)
        first.temperature = 0.9
        first.seed = 7
        _ = try await conversation.generate(first)
        try await conversation.save(to: saved)

        var more = GenerationRequest.more
        more.maxNewTokens = 30
        more.temperature = 0.9
        more.ignoreEos = true
        let straight = try await conversation.generate(more)
        let restored = try await HeliumConversation.restore(from: saved, model: model)
        let after = try await restored.generate(more)
        XCTAssertEqual(after.text, straight.text)
        XCTAssertEqual(after.reusedTokens, straight.reusedTokens)
        let (one, other) = (try await conversation.ids(), try await restored.ids())
        XCTAssertEqual(one, other)
    }

    func testFilesThatAreNone() async throws {
        let folder = try temporaryFolder(of: self)
        let model = try await openModel()
        let damaged = folder.appendingPathComponent("damaged")
        try Data(repeating: 7, count: 100).write(to: damaged)
        await assertThrows(.sessionFile) { try await HeliumConversation.restore(from: damaged, model: model) }
        await assertThrows(.io) { try await HeliumConversation.restore(from: folder.appendingPathComponent("missing"), model: model) }
        await assertThrows(.io) { try await HeliumConversation(model).save(to: folder.appendingPathComponent("no/such/folder")) }
    }
}
