import CHeliumOnnx
import Foundation

/// The calls on one conversation, one at a time.
///
/// A second call is refused as busy, as the core does it; but behind calls that were cancelled it waits, so that a text can
/// be stopped and the next one begun without asking when the first has ended (within one token).
final class Turns: @unchecked Sendable {
    /// One call. What it holds is guarded by its `Turns`.
    final class Turn: @unchecked Sendable {
        fileprivate var isCancelled = false
    }

    private let conversation: Ticket
    private let condition = NSCondition()
    private var line: [Turn] = []  // the first one may run

    init(of conversation: Ticket) { self.conversation = conversation }

    /// Takes a place in the line, or throws busy. Does not wait.
    func join() throws -> Turn {
        condition.lock()
        defer { condition.unlock() }
        guard line.allSatisfy(\.isCancelled) else {
            throw HeliumError(
                status: .busy,
                text: "the conversation is in use: found another call that has not returned; expected one at a time; open a second conversation")
        }
        let turn = Turn()
        line.append(turn)
        return turn
    }

    /// Waits for the turn, runs `body`, and lets the next one in. Not for a cooperative thread.
    func take<Value>(_ turn: Turn, _ body: () throws -> Value) rethrows -> Value {
        condition.lock()
        while line.first !== turn { condition.wait() }
        condition.unlock()
        defer {
            condition.lock()
            line.removeFirst()
            condition.broadcast()
            condition.unlock()
        }
        return try body()
    }

    /// Ends what the turn runs, or will run. Any thread; nothing where it has ended.
    func cancel(_ turn: Turn) {
        condition.lock()
        defer { condition.unlock() }
        turn.isCancelled = true
        // Under the lock, so that it cannot reach the next turn's call.
        if line.first === turn { helium_cancel(conversation.handle) }
    }

    /// The same for all that are in the line.
    func cancelAll() {
        condition.lock()
        defer { condition.unlock() }
        for turn in line { turn.isCancelled = true }
        if !line.isEmpty { helium_cancel(conversation.handle) }
    }

    /// helium_cancel before the core's call has begun does nothing: callbacks ask here.
    func isCancelled(_ turn: Turn) -> Bool {
        condition.lock()
        defer { condition.unlock() }
        return turn.isCancelled
    }
}
