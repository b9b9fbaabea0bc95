import XCTest

@testable import HeliumOnnx

/// The line before a conversation, without one: the ticket is none.
final class TurnsTests: XCTestCase {
    private let turns = Turns(of: Ticket(handle: OpaquePointer(bitPattern: 8)!))

    func testOneAtATime() throws {
        let first = try turns.join()
        XCTAssertThrowsError(try turns.join()) { XCTAssertEqual(($0 as? HeliumError)?.status, .busy) }
        try turns.take(first) { XCTAssertThrowsError(try turns.join()) }
        turns.take(try turns.join()) {}
    }

    func testWaitsBehindWhatWasCancelled() throws {
        let first = try turns.join()
        turns.cancel(first)
        let second = try turns.join()
        XCTAssertThrowsError(try turns.join())
        XCTAssertTrue(turns.isCancelled(first))
        XCTAssertFalse(turns.isCancelled(second))

        let order = Pieces()
        let done = DispatchSemaphore(value: 0)
        startThread { [turns] in
            turns.take(second) { order.append("second") }
            done.signal()
        }
        Thread.sleep(forTimeInterval: 0.05)
        turns.take(first) { order.append("first") }
        done.wait()
        XCTAssertEqual(order.all, ["first", "second"])
    }

    func testCancelAll() throws {
        let first = try turns.join()
        turns.cancelAll()
        let second = try turns.join()
        turns.cancelAll()
        XCTAssertTrue(turns.isCancelled(first) && turns.isCancelled(second))
        turns.take(first) {}
        turns.take(second) {}
        XCTAssertFalse(turns.isCancelled(try turns.join()))
    }

    func testTurnThatHasEndedIsNotCancelled() throws {
        let first = try turns.join()
        turns.take(first) {}
        let second = try turns.join()
        turns.cancel(first)
        XCTAssertFalse(turns.isCancelled(second))
        XCTAssertThrowsError(try turns.join())
    }

    func testErrorsLetTheNextOneIn() throws {
        struct Failure: Error {}
        XCTAssertThrowsError(try turns.take(try turns.join()) { throw Failure() })
        turns.take(try turns.join()) {}
    }
}
