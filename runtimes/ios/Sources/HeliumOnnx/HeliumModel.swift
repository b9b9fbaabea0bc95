import CHeliumOnnx
import Foundation

/// A bundle of helium-onnx, loaded. Any number of conversations share its weights; all methods may be called from any
/// thread at any time.
///
///     let model = try await HeliumModel.open(at: folder)
///     let conversation = try HeliumConversation(model)
///     for try await piece in conversation.stream(GenerationRequest("Once upon a time")) { print(piece, terminator: "") }
public final class HeliumModel: Sendable {
    let ticket: Ticket

    private init(_ ticket: Ticket) { self.ticket = ticket }

    deinit { close() }

    /// Loads the folder with `helium.json`, whose files must stay as they are while it is open.
    public static func open(at folder: URL, options: ModelOptions = ModelOptions()) async throws -> HeliumModel {
        try await onThread {
            var handle: OpaquePointer?
            try folder.withPath { path in
                try options.withC { try check(helium_model_open(path, $0, &handle)) }
            }
            return HeliumModel(Ticket(handle: handle!))
        }
    }

    /// No further use of this object. Conversations go on; the last one to be closed frees the weights.
    public func close() { helium_model_close(ticket.handle) }

    /// What the bundle will need, from its manifest alone: milliseconds, nothing is loaded.
    public static func memoryPlan(at folder: URL, options: ModelOptions = ModelOptions()) async throws -> MemoryPlan {
        try await onThread {
            var plan = helium_memory_plan()
            plan.struct_size = MemoryLayout<helium_memory_plan>.size
            try folder.withPath { path in
                try options.withC { try check(helium_plan_memory(path, $0, &plan)) }
            }
            return MemoryPlan(plan)
        }
    }

    public func info() throws -> ModelInfo {
        var info = helium_model_info()
        info.struct_size = MemoryLayout<helium_model_info>.size
        try check(helium_model_get_info(ticket.handle, &info))
        return ModelInfo(info)
    }

    /// Token ids of a text, `<s>` first.
    public func encode(_ text: String, options: EncodeOptions = []) throws -> [Int32] {
        try text.withCString { utf8 in
            try list { ids, capacity, count in
                helium_encode(ticket.handle, utf8, text.utf8.count, options.rawValue, ids, capacity, count)
            }
        }
    }

    /// Text of token ids, control tokens left out.
    public func decode(_ ids: [Int32], options: EncodeOptions = []) throws -> String {
        let utf8: [CChar] = try list { text, capacity, bytes in
            helium_decode(ticket.handle, ids, ids.count, options.rawValue, text, capacity, bytes)
        }
        return utf8.withUnsafeBytes { String(decoding: $0, as: UTF8.self) }
    }

    /// The version of this library: "0.1.0".
    public static var version: String { String(cString: helium_version()) }
}

/// A list of the C interface: `call` is asked for its length first.
func list<Item>(_ call: (UnsafeMutablePointer<Item>?, Int, UnsafeMutablePointer<Int>) -> helium_status) throws -> [Item] {
    var count = 0
    try check(call(nil, 0, &count))
    return try [Item](unsafeUninitializedCapacity: count) { buffer, filled in
        let capacity = count
        if capacity > 0 { try check(call(buffer.baseAddress, capacity, &count)) }
        filled = min(count, capacity)
    }
}
