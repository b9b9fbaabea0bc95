import XCTest

import HeliumOnnx

/// The vectors that Python's tokenizer wrote.
final class TokenizerTests: XCTestCase {
    private struct Vectors: Decodable {
        struct Text: Decodable {
            let text: String
            let ids: [Int32]
        }
        let texts: [Text]
        let special: [Text]
    }

    func testVectors() async throws {
        let vectors = try JSONDecoder().decode(Vectors.self, from: Data(contentsOf: file("HELIUM_VECTORS").appendingPathComponent("tokenizer.json")))
        let model = try await openModel()
        XCTAssertGreaterThan(vectors.texts.count, 100)
        for vector in vectors.texts {
            XCTAssertEqual(try model.encode(vector.text), vector.ids, vector.text.debugDescription)
        }
        for vector in vectors.special {
            XCTAssertEqual(try model.encode(vector.text, options: .parseSpecial), vector.ids, vector.text.debugDescription)
        }
    }

    func testTextComesBack() async throws {
        let model = try await openModel()
        for text in ["", "a", "  two  spaces ", "L'été, où", "🦙👩‍👩‍👧‍👦 \u{0}after a NUL\u{0}", "日本語\r\n"] {
            let decoded = try model.decode(model.encode(text))
            XCTAssertEqual(Array(decoded.utf8), Array(text.utf8), text.debugDescription)
        }
    }

    func testOptions() async throws {
        let model = try await openModel()
        XCTAssertEqual(try model.encode("a").first, 1)
        XCTAssertEqual(try model.encode("a", options: .noBos), Array(try model.encode("a").dropFirst()))
        XCTAssertFalse(try model.encode("</s>").contains(2))
        XCTAssertEqual(try model.decode(model.encode(" a", options: .continues), options: .continues), " a")
    }

    func testWrongIdIsAnError() async throws {
        let model = try await openModel()
        await assertThrows(.tokenizer) { try model.decode([1_000_000]) }
        await assertThrows(.tokenizer) { try model.decode([-1]) }
    }
}
