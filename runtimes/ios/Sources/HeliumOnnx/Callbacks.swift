import CHeliumOnnx

/// What the core calls while it generates, on the thread of `helium_generate`.
final class Callbacks {
    private(set) var text = ""
    private let isCancelled: () -> Bool
    private let onText: (String) -> Void
    private let onPrefill: (Int, Int) -> Void

    init(isCancelled: @escaping () -> Bool, onText: @escaping (String) -> Void, onPrefill: @escaping (Int, Int) -> Void) {
        self.isCancelled = isCancelled
        self.onText = onText
        self.onPrefill = onPrefill
    }

    /// The request is good as long as the callbacks live.
    func attach(to request: inout helium_request) {
        request.user = Unmanaged.passUnretained(self).toOpaque()
        request.on_token = { user, _ in Callbacks.of(user).goesOn }
        request.on_text = { user, utf8, bytes in
            // Whole characters, and no NUL behind them.
            let piece = String(decoding: UnsafeRawBufferPointer(start: utf8, count: bytes), as: UTF8.self)
            let callbacks = Callbacks.of(user)
            callbacks.text += piece
            callbacks.onText(piece)
            return callbacks.goesOn
        }
        request.on_prefill = { user, done, of in
            Callbacks.of(user).onPrefill(Int(done), Int(of))
            return Callbacks.of(user).goesOn
        }
    }

    private static func of(_ user: UnsafeMutableRawPointer?) -> Callbacks {
        Unmanaged<Callbacks>.fromOpaque(user!).takeUnretainedValue()
    }

    /// 0, or 1 to end the text.
    private var goesOn: Int32 { isCancelled() ? 1 : 0 }
}
