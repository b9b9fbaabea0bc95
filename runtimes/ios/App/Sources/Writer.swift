import Foundation
import HeliumOnnx

/// What the screen shows, and what its buttons do.
@MainActor
final class Writer: ObservableObject {
    enum State: Equatable {
        case loading(progress: Double?)
        case ready
        case writing
        case failed(String)
    }

    @Published private(set) var state = State.loading(progress: nil)
    @Published private(set) var text = ""
    @Published private(set) var speed = ""
    @Published private(set) var memory = ""
    @Published var prompt = "Once upon a time"

    private var model: HeliumModel?
    private var conversation: HeliumConversation?
    private var writing: Task<Void, Never>?

    /// Finds, perhaps downloads, and opens the model. Again after a failure: a download goes on where it was.
    func load() async {
        guard model == nil else { return }
        state = .loading(progress: nil)
        do {
            let folder = try await ModelFolder.find { progress in
                Task { @MainActor [weak self] in self?.show(progress) }
            }
            var options = ModelOptions()
            options.contextLength = 2048
            try await Self.checkMemory(folder, options)
            let model = try await HeliumModel.open(at: folder, options: options)
            self.model = model
            conversation = try HeliumConversation(model)
            state = .ready
            showMemory()
        } catch {
            state = .failed(error.localizedDescription)
        }
    }

    private func show(_ progress: Double) {
        if case .loading = state { state = .loading(progress: progress) }
    }

    /// An error in words is better than an app that the system ends. Mapped weights are not the app's: the system takes their
    /// pages back where it needs them.
    private static func checkMemory(_ folder: URL, _ options: ModelOptions) async throws {
        let plan = try await HeliumModel.memoryPlan(at: folder, options: options)
        let own = plan.total - plan.weights
        if let available = plan.available, available > 0, own > available {  // the simulator tells 0
            throw NotEnoughMemory(needed: own, available: available)
        }
    }

    func start() {
        guard state == .ready, let conversation else { return }
        var request = GenerationRequest(prompt)
        request.maxNewTokens = 400
        request.temperature = 0.7
        request.topP = 0.95
        text = prompt
        speed = ""
        state = .writing
        writing = Task {
            do {
                let result = try await write(request, with: conversation)
                speed = String(format: "%.1f tokens/s, first after %.2f s", result.decodeTokensPerSecond, result.firstTokenSeconds)
                state = .ready
            } catch {
                state = .failed(error.localizedDescription)
            }
            showMemory()
        }
    }

    /// Shows pieces as they come; a task that is cancelled ends with what there is.
    private func write(_ request: GenerationRequest, with conversation: HeliumConversation) async throws -> GenerationResult {
        let (pieces, feed) = AsyncStream.makeStream(of: String.self)
        @Sendable func generate() async throws -> GenerationResult {
            defer { feed.finish() }
            return try await conversation.generate(request, onText: { feed.yield($0) })
        }
        async let result = generate()
        for await piece in pieces { text += piece }
        return try await result
    }

    /// Within one token.
    func stop() { writing?.cancel() }

    /// After an error: with the model where it is loaded, else from the beginning.
    func retry() async {
        if model == nil { await load() } else { state = .ready }
    }

    private func showMemory() {
        guard let info = try? model?.info() else { return }
        memory = "\(megabytes(footprint())) of memory, \(megabytes(info.weightsResident ?? 0)) of \(megabytes(info.weightsBytes)) weights mapped in"
    }
}

struct NotEnoughMemory: LocalizedError {
    let needed: Int64
    let available: Int64

    var errorDescription: String? { "The model needs \(megabytes(needed)) of memory; this device gives \(megabytes(available))." }
}

private func megabytes(_ bytes: Int64) -> String { "\(bytes / 1_000_000) MB" }
