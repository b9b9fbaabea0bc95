import Foundation

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// A server in the test's process: what it answers is set for each test.
final class FakeServer: @unchecked Sendable {
    /// Content by URL path.
    var files: [String: Data] = [:]
    var knowsRanges = true
    /// The connection breaks after so many bytes of an answer.
    var breaksAfter: Int?
    var status: Int?
    /// "GET /path" and the bytes asked for, in order.
    private(set) var requests: [String] = []

    private final class Current: @unchecked Sendable {
        let lock = NSLock()
        var server: FakeServer?
    }
    private static let current = Current()

    /// A session's configuration that leads here.
    func configuration() -> URLSessionConfiguration {
        Self.current.lock.withLock { Self.current.server = self }
        let configuration = URLSessionConfiguration.ephemeral
        configuration.protocolClasses = [Answering.self]
        return configuration
    }

    private func answer(_ request: URLRequest) -> (response: HTTPURLResponse, body: Data, breaks: Bool) {
        let url = request.url!
        let range = request.value(forHTTPHeaderField: "Range")
        requests.append(url.path + (range.map { " " + $0 } ?? ""))
        func respond(_ status: Int, _ headers: [String: String] = [:], _ body: Data = Data()) -> (HTTPURLResponse, Data, Bool) {
            let sent = breaksAfter.map { body.prefix($0) } ?? body
            return (HTTPURLResponse(url: url, statusCode: status, httpVersion: "HTTP/1.1", headerFields: headers)!, sent, sent.count < body.count)
        }
        if let status { return respond(status) }
        guard let file = files[url.path] else { return respond(404) }
        guard knowsRanges, let range, let start = Int(range.dropFirst("bytes=".count).dropLast()) else { return respond(200, [:], file) }
        guard start < file.count else { return respond(416) }
        return respond(206, ["Content-Range": "bytes \(start)-\(file.count - 1)/\(file.count)"], Data(file.dropFirst(start)))
    }

    private final class Answering: URLProtocol, @unchecked Sendable {
        override class func canInit(with request: URLRequest) -> Bool { true }
        override class func canonicalRequest(for request: URLRequest) -> URLRequest { request }

        override func startLoading() {
            let current = FakeServer.current
            let answer = current.lock.withLock { current.server!.answer(request) }
            client?.urlProtocol(self, didReceive: answer.response, cacheStoragePolicy: .notAllowed)
            for start in stride(from: 0, to: answer.body.count, by: 1000) {
                client?.urlProtocol(self, didLoad: Data(answer.body.dropFirst(start).prefix(1000)))
            }
            if answer.breaks {
                client?.urlProtocol(self, didFailWithError: URLError(.networkConnectionLost))
            } else {
                client?.urlProtocolDidFinishLoading(self)
            }
        }

        override func stopLoading() {}
    }
}
