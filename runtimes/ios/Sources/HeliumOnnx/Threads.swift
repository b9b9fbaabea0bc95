import Foundation

/// Runs `body` on a thread of its own. Swift's cooperative threads are as few as the cores, and must not be blocked.
func startThread(_ body: @escaping @Sendable () -> Void) {
    let thread = Thread(block: body)
    thread.name = "helium-onnx"
    thread.stackSize = 4 << 20  // Apple's threads have 512 KB, of which kernels of ONNX Runtime want more
    thread.qualityOfService = .userInitiated
    thread.start()
}

/// The same, and waits for what it gives.
func onThread<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        startThread { continuation.resume(with: Result(catching: body)) }
    }
}
