import Foundation

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif
#if canImport(CryptoKit)
import CryptoKit
#endif

/// Writes one answer of a server to a file as it comes. A session's queue runs one method at a time.
final class FileReceiver: NSObject, URLSessionDataDelegate, @unchecked Sendable {
    private let handle: FileHandle
    private var digest: SHA256
    private var held: Int64
    private let limit: Int64
    private let onBytes: @Sendable (Int64) -> Void
    private var outcome: Result<Void, Error>?
    private let lock = NSLock()
    private var ended: Result<Void, Error>?
    private var continuation: CheckedContinuation<Void, Error>?

    /// `held` bytes of the file are there, of which `digest` is.
    init(handle: FileHandle, digest: SHA256, held: Int64, limit: Int64, onBytes: @escaping @Sendable (Int64) -> Void) {
        self.handle = handle
        self.digest = digest
        self.held = held
        self.limit = limit
        self.onBytes = onBytes
    }

    func run(_ request: URLRequest, _ configuration: URLSessionConfiguration) async throws {
        let session = URLSession(configuration: configuration, delegate: self, delegateQueue: nil)
        defer { session.finishTasksAndInvalidate() }  // it holds this object until then
        let task = session.dataTask(with: request)
        try await withTaskCancellationHandler {
            task.resume()
            try await withCheckedThrowingContinuation(wait)
        } onCancel: {
            task.cancel()
        }
    }

    /// What the file is now. More bytes than the limit are counted, but not written.
    func finish() throws -> (size: Int64, sha256: String) {
        try handle.close()
        return (held, digest.hex())
    }

    func urlSession(
        _ session: URLSession, dataTask: URLSessionDataTask, didReceive response: URLResponse,
        completionHandler: @escaping (URLSession.ResponseDisposition) -> Void
    ) {
        do {
            let goesOn = try begin(response)
            if !goesOn { outcome = .success(()) }
            completionHandler(goesOn ? .allow : .cancel)
        } catch {
            outcome = .failure(error)
            completionHandler(.cancel)
        }
    }

    func urlSession(_ session: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        guard outcome == nil else { return }
        held += Int64(data.count)
        guard held <= limit else {
            outcome = .success(())
            return dataTask.cancel()
        }
        do {
            try handle.write(contentsOf: data)
            digest.update(data: data)
            onBytes(held)
        } catch {
            outcome = .failure(error)
            dataTask.cancel()
        }
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: Error?) {
        if let outcome {
            end(outcome)
        } else if (error as? URLError)?.code == .cancelled {
            end(.failure(CancellationError()))
        } else if let error {
            let url = task.originalRequest?.url?.absoluteString ?? "the file"
            end(.failure(DownloadError(.connection, "\(url) did not arrive whole: found \(error.localizedDescription); try again, it goes on there")))
        } else {
            end(.success(()))
        }
    }

    /// Whether the answer's body is wanted.
    private func begin(_ response: URLResponse) throws -> Bool {
        let url = response.url?.absoluteString ?? "the file"
        guard let http = response as? HTTPURLResponse else {
            throw DownloadError(.status, "\(url) is not served over HTTP; check the URL")
        }
        switch http.statusCode {
        case 206 where http.value(forHTTPHeaderField: "Content-Range")?.hasPrefix("bytes \(held)-") == true:
            try handle.seekToEnd()
            return true
        case 200:  // a server that does not know ranges sends the whole file
            try startAnew()
            return true
        case 416 where held > 0:  // the file is shorter than what is here, which is of another one
            try startAnew()
            return false
        default:
            throw DownloadError(.status, "\(url) cannot be downloaded: found status \(http.statusCode); check the URL")
        }
    }

    private func startAnew() throws {
        try handle.truncate(atOffset: 0)
        digest = SHA256()
        held = 0
    }

    // The task may end before `run` waits for it: it is cancelled from another thread.

    private func wait(_ continuation: CheckedContinuation<Void, Error>) {
        lock.lock()
        defer { lock.unlock() }
        if let ended { return continuation.resume(with: ended) }
        self.continuation = continuation
    }

    private func end(_ result: Result<Void, Error>) {
        lock.lock()
        defer { lock.unlock() }
        ended = result
        continuation?.resume(with: result)
        continuation = nil
    }
}
