import XCTest

import HeliumOnnx

final class ParallelTests: XCTestCase {
    func testConversationsAreIndependent() async throws {
        let model = try await openModel { $0.threads = 1 }
        let prompts = ["Once upon a time", "Il était une fois", "Es war einmal", "C'era una volta", "Érase una vez", "日本", "1 + 1 =", "<s>"]
        var alone: [String] = []
        for prompt in prompts { alone.append(try await HeliumConversation(model).generate(short(prompt)).text) }
        let together = try await withThrowingTaskGroup(of: (Int, String).self) { group in
            for (index, prompt) in prompts.enumerated() {
                group.addTask {
                    var text = ""
                    for try await piece in try HeliumConversation(model).stream(short(prompt)) { text += piece }
                    return (index, text)
                }
            }
            var texts = [String](repeating: "", count: prompts.count)
            for try await (index, text) in group { texts[index] = text }
            return texts
        }
        XCTAssertEqual(together, alone)
    }

    /// More generations than Swift has threads: none of them blocks the others' tasks.
    func testTasksGoOnMeanwhile() async throws {
        let model = try await openModel { $0.threads = 1 }
        let conversations = try (0..<8).map { _ in try HeliumConversation(model) }
        let generations = conversations.map { conversation in Task { try await conversation.generate(long) } }
        let ticks = Task {
            for _ in 0..<20 { try await Task.sleep(nanoseconds: 1_000_000) }
            return true
        }
        let ticked = try await ticks.value
        XCTAssertTrue(ticked)
        for generation in generations { generation.cancel() }
        for generation in generations {
            let result = try await generation.value
            XCTAssertEqual(result.finish, .cancelled)
        }
    }

    func testModelsAreIndependent() async throws {
        async let one = openModel()
        async let other = openModel()
        let (first, second) = (try await one, try await other)
        first.close()
        let result = try await HeliumConversation(second).generate(short("Once", tokens: 4))
        XCTAssertEqual(result.newTokens, 4)
    }

    func testObjectsThatAreDroppedAreClosed() async throws {
        weak var dropped: HeliumConversation?
        weak var droppedModel: HeliumModel?
        do {
            let model = try await openModel()
            let conversation = try HeliumConversation(model)
            for try await _ in conversation.stream(long) { break }
            _ = try await conversation.ids()  // behind the abandoned text
            (dropped, droppedModel) = (conversation, model)
        }
        for _ in 0..<500 where dropped != nil || droppedModel != nil { try await Task.sleep(nanoseconds: 10_000_000) }
        XCTAssertNil(dropped)
        XCTAssertNil(droppedModel)
    }
}
