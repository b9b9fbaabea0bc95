import XCTest

@testable import HeliumDownload

#if canImport(CryptoKit)
import CryptoKit
#endif

final class SHA256Tests: XCTestCase {
    /// FIPS 180-4's examples, and lengths around the block's.
    func testKnownDigests() {
        XCTAssertEqual(hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        XCTAssertEqual(hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        XCTAssertEqual(
            hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1")
        XCTAssertEqual(hex(String(repeating: "a", count: 1_000_000)), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
    }

    func testPartsGiveTheSame() {
        let data = Data((0..<300).map { UInt8(truncatingIfNeeded: $0) })
        for size in [1, 3, 55, 56, 63, 64, 65, 119, 128, 299] {
            var digest = SHA256()
            for start in stride(from: 0, to: data.count, by: size) { digest.update(data: data.dropFirst(start).prefix(size)) }
            var whole = SHA256()
            whole.update(data: data)
            XCTAssertEqual(digest.hex(), whole.hex(), "\(size)")
        }
    }

    private func hex(_ text: String) -> String {
        var digest = SHA256()
        digest.update(data: Data(text.utf8))
        return digest.hex()
    }
}
