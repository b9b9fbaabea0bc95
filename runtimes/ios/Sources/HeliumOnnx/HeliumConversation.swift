import CHeliumOnnx
import Foundation

/// A text that grows: its tokens, their keys and values, and random numbers of its own.
///
/// Methods may be called from any thread. They are for one call at a time: another one meanwhile throws `.busy`, but waits
/// behind a generation that was cancelled.
public final class HeliumConversation: Sendable {
    private let ticket: Ticket
    private let turns: Turns

    private init(_ ticket: Ticket) {
        self.ticket = ticket
        turns = Turns(of: ticket)
    }

    deinit { close() }

    /// Memory is taken as tokens come.
    public convenience init(_ model: HeliumModel, options: ConversationOptions = ConversationOptions()) throws {
        var handle: OpaquePointer?
        try options.withC { try check(helium_conversation_open(model.ticket.handle, $0, &handle)) }
        self.init(Ticket(handle: handle!))
    }

    /// A conversation as it was saved: it goes on with the very same tokens. Of the same bundle and kernels only.
    public static func restore(from file: URL, model: HeliumModel, options: ConversationOptions = ConversationOptions()) async throws -> HeliumConversation {
        try await onThread {
            var handle: OpaquePointer?
            try file.withPath { path in
                try options.withC { try check(helium_conversation_restore(model.ticket.handle, path, $0, &handle)) }
            }
            return HeliumConversation(Ticket(handle: handle!))
        }
    }

    /// Void for all calls from now on; a generation that is running ends within one token and throws `.closed`.
    public func close() { helium_conversation_close(ticket.handle) }

    // MARK: Generation

    /// The text as it becomes certain, in whole characters. It is generated from now on, whether read or not, and ends where
    /// the reading task is cancelled or gives the stream up.
    public func stream(_ request: GenerationRequest) -> AsyncThrowingStream<String, Error> {
        AsyncThrowingStream { continuation in
            let turn: Turns.Turn
            do {
                turn = try turns.join()
            } catch {
                return continuation.finish(throwing: error)
            }
            continuation.onTermination = { [turns] termination in
                if case .cancelled = termination { turns.cancel(turn) }
            }
            startThread {
                do {
                    _ = try self.run(request, turn, onText: { continuation.yield($0) })
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
        }
    }

    /// The whole text. Where the task is cancelled it is what was generated until then, with `finish` `.cancelled`.
    ///
    /// `onText` gets the text as it becomes certain, `onPrefill` how many tokens of how many were read, both on a thread of
    /// this library's: what they do, generation waits for.
    public func generate(
        _ request: GenerationRequest,
        onText: @escaping @Sendable (String) -> Void = { _ in },
        onPrefill: @escaping @Sendable (_ done: Int, _ of: Int) -> Void = { _, _ in }
    ) async throws -> GenerationResult {
        let turn = try turns.join()
        return try await withTaskCancellationHandler {
            try await onThread { try self.run(request, turn, onText: onText, onPrefill: onPrefill) }
        } onCancel: {
            turns.cancel(turn)
        }
    }

    /// Ends the generation that is running within one token, or within a part of its prompt; without one, nothing.
    public func cancel() { turns.cancelAll() }

    // MARK: Tokens

    /// The tokens that the conversation holds.
    public func ids() async throws -> [Int32] {
        try await use { ticket in
            try list { helium_conversation_ids(ticket.handle, $0, $1, $2) }
        }
    }

    /// Forgets all tokens after the first `count`.
    public func truncate(to count: Int) async throws {
        guard count >= 0 else { throw HeliumError(status: .invalidArgument, text: "count is negative: found \(count); expected 0 or more") }
        try await use { try check(helium_conversation_truncate($0.handle, count)) }
    }

    /// Writes tokens, keys, values and random numbers to a file that only the app's user may read, in one step.
    public func save(to file: URL) async throws {
        try await use { ticket in
            try file.withPath { try check(helium_conversation_save(ticket.handle, $0)) }
        }
    }

    // MARK: -

    /// A call that takes its turn on a thread of its own.
    private func use<Value: Sendable>(_ body: @escaping @Sendable (Ticket) throws -> Value) async throws -> Value {
        let turn = try turns.join()
        return try await onThread { [self] in
            try turns.take(turn) { try body(ticket) }
        }
    }

    /// The whole of a generation, on this thread.
    private func run(
        _ request: GenerationRequest, _ turn: Turns.Turn, onText: @escaping (String) -> Void, onPrefill: @escaping (Int, Int) -> Void = { _, _ in }
    ) throws -> GenerationResult {
        try turns.take(turn) {
            if turns.isCancelled(turn) { return .neverBegan }
            let callbacks = Callbacks(isCancelled: { self.turns.isCancelled(turn) }, onText: onText, onPrefill: onPrefill)
            return try withExtendedLifetime(callbacks) {
                try request.withC { asked in
                    callbacks.attach(to: &asked)
                    var result = helium_result()
                    result.struct_size = MemoryLayout<helium_result>.size
                    try check(helium_generate(ticket.handle, &asked, &result))
                    return GenerationResult(result, text: callbacks.text)
                }
            }
        }
    }
}
