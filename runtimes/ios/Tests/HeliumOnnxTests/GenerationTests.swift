import XCTest

import HeliumOnnx

/// Texts equal those of the C sample, and pieces join to them.
final class GenerationTests: XCTestCase {
    /// What Tests/run.py writes down of one run of the C sample.
    private struct Expected: Decodable {
        let prompt: String
        let max_new_tokens: Int
        let temperature: Double?
        let top_k: Int?
        let top_p: Double?
        let min_p: Double?
        let repetition_penalty: Double?
        let seed: UInt64?
        let stop: String?
        let ids: [Int32]
        let text: String

        var request: GenerationRequest {
            var request = GenerationRequest(prompt)
            request.maxNewTokens = max_new_tokens
            request.temperature = temperature ?? 0
            request.topK = top_k ?? 0
            request.topP = top_p ?? 1
            request.minP = min_p ?? 0
            request.repetitionPenalty = repetition_penalty ?? 1
            request.seed = seed
            request.stop = stop.map { [$0] } ?? []
            return request
        }
    }

    func testTextsOfTheCSample() async throws {
        let all = try JSONDecoder().decode([Expected].self, from: Data(contentsOf: file("HELIUM_EXPECTED")))
        XCTAssertGreaterThan(all.count, 4)
        let model = try await openModel { $0.kernels = .onnxRuntime }
        for expected in all {
            let conversation = try HeliumConversation(model)
            let result = try await conversation.generate(expected.request)
            XCTAssertEqual(result.text, expected.text)
            XCTAssertEqual(result.newTokens, expected.ids.count)
            let ids = try await conversation.ids()
            XCTAssertEqual(Array(ids.suffix(result.newTokens)), expected.ids)
            XCTAssertEqual(Array(ids.prefix(result.promptTokens)), try model.encode(expected.prompt))
            if let seed = expected.seed { XCTAssertEqual(result.seed, seed) }
        }
    }

    func testStreamJoinsToTheText() async throws {
        let model = try await openModel()
        let whole = try await HeliumConversation(model).generate(short("Il était une fois", tokens: 60))
        var pieces: [String] = []
        for try await piece in try HeliumConversation(model).stream(short("Il était une fois", tokens: 60)) { pieces.append(piece) }
        XCTAssertGreaterThan(pieces.count, 5)
        XCTAssertEqual(pieces.joined(), whole.text)
        XCTAssertFalse(pieces.contains(""))
    }

    func testOnTextJoinsToTheText() async throws {
        let pieces = Pieces()
        let prefill = Pieces()
        let result = try await HeliumConversation(openModel()).generate(
            short("Once"), onText: { pieces.append($0) }, onPrefill: { prefill.append("\($0)/\($1)") })
        XCTAssertEqual(pieces.all.joined(), result.text)
        XCTAssertEqual(prefill.all.last, "\(result.promptTokens)/\(result.promptTokens)")
    }

    func testResult() async throws {
        let conversation = try await HeliumConversation(openModel())
        let first = try await conversation.generate(short("Once upon a time", tokens: 8))
        XCTAssertEqual(first.finish, .length)
        XCTAssertEqual(first.newTokens, 8)
        XCTAssertEqual(first.reusedTokens, 0)
        XCTAssertNil(first.stopIndex)
        XCTAssertGreaterThan(first.seconds, 0)
        XCTAssertGreaterThan(first.firstTokenSeconds, 0)
        XCTAssertGreaterThan(first.prefillTokensPerSecond, 0)
        XCTAssertGreaterThan(first.decodeTokensPerSecond, 0)
        let second = try await conversation.generate(short("Once upon a time", tokens: 8))
        XCTAssertEqual(second.text, first.text)
        XCTAssertEqual(second.reusedTokens, second.promptTokens - 1)
    }

    func testStopString() async throws {
        let model = try await openModel()
        let whole = try await HeliumConversation(model).generate(short("Once upon a time", tokens: 40)).text
        let stop = String(whole.dropFirst(whole.count / 2).prefix(4))
        var request = short("Once upon a time", tokens: 40)
        request.stop = ["\u{1}never", stop]
        let result = try await HeliumConversation(model).generate(request)
        XCTAssertEqual(result.finish, .stop)
        XCTAssertEqual(result.stopIndex, 1)
        XCTAssertTrue(whole.hasPrefix(result.text + stop))
    }

    func testAppending() async throws {
        let model = try await openModel()
        let whole = try await HeliumConversation(model).generate(short("Once upon a time", tokens: 20))
        let conversation = try HeliumConversation(model)
        let first = try await conversation.generate(short("Once upon a time", tokens: 10))
        var more = GenerationRequest.more
        more.maxNewTokens = 10
        more.ignoreEos = true
        let second = try await conversation.generate(more)
        XCTAssertEqual(first.text + second.text, whole.text)
        XCTAssertEqual(second.promptTokens, first.promptTokens + 10)

        var said = short(" and then", tokens: 4)
        said.promptMode = .append
        let before = try await conversation.ids()
        let third = try await conversation.generate(said)
        let after = try await conversation.ids()
        XCTAssertEqual(Array(after.prefix(before.count)), before)
        XCTAssertEqual(after.count, third.promptTokens + 4)
    }

    func testIdsForAPrompt() async throws {
        let model = try await openModel()
        let ids = try model.encode("Once upon a time")
        var request = GenerationRequest(ids: ids)
        request.maxNewTokens = 12
        let byIds = try await HeliumConversation(model).generate(request)
        let byText = try await HeliumConversation(model).generate(short("Once upon a time", tokens: 12))
        XCTAssertEqual(byIds.text, byText.text)
    }

    func testOnlyReading() async throws {
        let model = try await openModel()
        let conversation = try HeliumConversation(model)
        let read = try await conversation.generate(short("Once upon a time", tokens: 0))
        XCTAssertEqual(read.newTokens, 0)
        XCTAssertEqual(read.text, "")
        let ids = try await conversation.ids()
        XCTAssertEqual(ids, try model.encode("Once upon a time"))
        try await conversation.truncate(to: 2)
        let kept = try await conversation.ids()
        XCTAssertEqual(kept, Array(ids.prefix(2)))
        await assertThrows(.invalidArgument) { try await conversation.truncate(to: 3) }
        await assertThrows(.invalidArgument) { try await conversation.truncate(to: -1) }
    }

    func testPromptsThatCStringsWouldCut() async throws {
        let model = try await openModel()
        for prompt in ["🦙👩‍👩‍👧‍👦 une", "before\u{0}after", "\u{0}", "\u{feff}é"] {
            let conversation = try HeliumConversation(model)
            let result = try await conversation.generate(short(prompt, tokens: 16))
            let ids = try await conversation.ids()
            XCTAssertEqual(Array(ids.prefix(result.promptTokens)), try model.encode(prompt), prompt.debugDescription)
            XCTAssertEqual(result.newTokens, 16)
        }
    }

    /// Sampled wide, the tokens are bytes of all sorts: pieces are whole characters all the same.
    func testPiecesAreWholeCharacters() async throws {
        var request = short("🦙", tokens: 200)
        request.temperature = 5
        request.seed = 3
        let pieces = Pieces()
        let conversation = try await HeliumConversation(openModel())
        let result = try await conversation.generate(request, onText: { pieces.append($0) })
        XCTAssertEqual(pieces.all.joined(), result.text)
        XCTAssertEqual(pieces.all.reduce(0) { $0 + $1.unicodeScalars.count }, result.text.unicodeScalars.count)
    }
}

/// What callbacks gave, in order.
final class Pieces: @unchecked Sendable {
    private let lock = NSLock()
    private var pieces: [String] = []

    func append(_ piece: String) {
        lock.lock()
        pieces.append(piece)
        lock.unlock()
    }

    var all: [String] {
        lock.lock()
        defer { lock.unlock() }
        return pieces
    }
}
