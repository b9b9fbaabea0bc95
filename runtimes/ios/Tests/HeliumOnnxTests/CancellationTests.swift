import XCTest

import HeliumOnnx

/// Whatever ends a text, it ends within a token, and the conversation can go on.
final class CancellationTests: XCTestCase {
    func testCancelEndsTheText() async throws {
        let conversation = try await HeliumConversation(openModel())
        let result = try await conversation.generate(long, onText: { _ in conversation.cancel() })
        XCTAssertEqual(result.finish, .cancelled)
        XCTAssertLessThan(result.newTokens, 100)
        try await assertGoesOn(conversation)
    }

    func testCancelledTaskGivesWhatThereIs() async throws {
        let conversation = try await HeliumConversation(openModel())
        let begun = expectation(description: "text")
        begun.assertForOverFulfill = false
        let task = Task { try await conversation.generate(long, onText: { _ in begun.fulfill() }) }
        await fulfillment(of: [begun], timeout: 30)
        task.cancel()
        let result = try await task.value
        XCTAssertEqual(result.finish, .cancelled)
        XCTAssertFalse(result.text.isEmpty)
        XCTAssertLessThan(result.newTokens, 1500)
        try await assertGoesOn(conversation)
    }

    func testTaskThatWasCancelledBefore() async throws {
        let conversation = try await HeliumConversation(openModel())
        let task = Task {
            while !Task.isCancelled { await Task.yield() }
            return try await conversation.generate(long)
        }
        task.cancel()
        let result = try await task.value
        XCTAssertEqual(result.finish, .cancelled)
        XCTAssertLessThan(result.newTokens, 2)
        try await assertGoesOn(conversation)
    }

    func testCancelRightAfterTheStreamWasMade() async throws {
        let conversation = try await HeliumConversation(openModel())
        for _ in 0..<20 {
            let stream = conversation.stream(long)
            conversation.cancel()
            var pieces = 0
            for try await _ in stream { pieces += 1 }
            XCTAssertLessThan(pieces, 100)
        }
        try await assertGoesOn(conversation)
    }

    func testCancelledReaderOfAStream() async throws {
        let conversation = try await HeliumConversation(openModel())
        let task = Task {
            var pieces = 0
            for try await _ in conversation.stream(long) {
                pieces += 1
                if pieces == 3 { withUnsafeCurrentTask { $0?.cancel() } }
            }
            return pieces
        }
        let pieces = try await task.value
        XCTAssertLessThan(pieces, 1500)
        try await assertGoesOn(conversation)
    }

    func testAbandonedStream() async throws {
        let conversation = try await HeliumConversation(openModel())
        for try await _ in conversation.stream(long) { break }
        try await assertGoesOn(conversation)  // not busy: it waits for the end of the abandoned one
        let ids = try await conversation.ids()
        XCTAssertLessThan(ids.count, 200)
    }

    func testStreamThatNobodyReads() async throws {
        let conversation = try await HeliumConversation(openModel())
        _ = conversation.stream(long)
        try await assertGoesOn(conversation)
    }

    func testStreamKeepsItsConversation() async throws {
        let model = try await openModel()
        let stream = try HeliumConversation(model).stream(short("Once", tokens: 30))
        var text = ""
        for try await piece in stream { text += piece }
        let whole = try await HeliumConversation(model).generate(short("Once", tokens: 30))
        XCTAssertEqual(text, whole.text)
    }

    func testLongPromptIsGivenUp() async throws {
        let conversation = try await HeliumConversation(openModel())
        let task = Task {
            try await conversation.generate(
                short(String(repeating: "word ", count: 1500)), onPrefill: { done, of in if done < of { conversation.cancel() } })
        }
        let result = try await task.value
        XCTAssertEqual(result.finish, .cancelled)
        XCTAssertEqual(result.newTokens, 0)
        try await assertGoesOn(conversation)
    }

    func testCancelWithoutAGeneration() async throws {
        let conversation = try await HeliumConversation(openModel())
        conversation.cancel()
        try await assertGoesOn(conversation)
        conversation.cancel()
        try await assertGoesOn(conversation)
    }

    private func assertGoesOn(_ conversation: HeliumConversation, file: StaticString = #filePath, line: UInt = #line) async throws {
        let result = try await conversation.generate(short("Once upon a time", tokens: 5))
        XCTAssertEqual(result.finish, .length, file: file, line: line)
        XCTAssertEqual(result.newTokens, 5, file: file, line: line)
    }
}
