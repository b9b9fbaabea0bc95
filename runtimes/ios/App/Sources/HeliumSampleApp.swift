import SwiftUI

@main
struct HeliumSampleApp: App {
    @StateObject private var writer = Writer()

    var body: some Scene {
        WindowGroup { WriterView(writer: writer) }
    }
}
