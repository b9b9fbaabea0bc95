import SwiftUI

/// The one screen: a prompt, the text as it comes, a button that starts and stops.
struct WriterView: View {
    @ObservedObject var writer: Writer
    @Environment(\.scenePhase) private var scenePhase

    var body: some View {
        VStack(alignment: .leading, spacing: 12) {
            switch writer.state {
            case .loading(let progress): loading(progress)
            case .failed(let text): failed(text)
            case .ready, .writing: writing
            }
        }
        .padding()
        .task { await writer.load() }
        .onChange(of: scenePhase) { phase in
            if phase == .background { writer.stop() }  // the system ends apps that compute behind others
        }
    }

    private func loading(_ progress: Double?) -> some View {
        VStack {
            ProgressView(value: progress)
            Text(progress == nil ? "Loading the model" : "Downloading the model")
        }
        .frame(maxWidth: .infinity, maxHeight: .infinity)
    }

    private func failed(_ text: String) -> some View {
        VStack(spacing: 12) {
            Text(text).textSelection(.enabled)
            Button("Try again") { Task { await writer.retry() } }
        }
        .frame(maxWidth: .infinity, maxHeight: .infinity)
    }

    @ViewBuilder private var writing: some View {
        TextField("Prompt", text: $writer.prompt, axis: .vertical)
            .textFieldStyle(.roundedBorder)
            .lineLimit(1...4)
            .disabled(writer.state == .writing)
        ScrollView {
            Text(writer.text).frame(maxWidth: .infinity, alignment: .leading).textSelection(.enabled)
        }
        if writer.state == .writing {
            Button("Stop", role: .destructive) { writer.stop() }.buttonStyle(.bordered)
        } else {
            Button("Write") { writer.start() }.buttonStyle(.borderedProminent).disabled(writer.prompt.isEmpty)
        }
        Text(writer.speed).font(.footnote.monospacedDigit())
        Text(writer.memory).font(.footnote.monospacedDigit())
    }
}
