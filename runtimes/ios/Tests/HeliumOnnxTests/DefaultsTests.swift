import CHeliumOnnx
import XCTest

@testable import HeliumOnnx

/// Swift's defaults and numbers are those of helium_onnx.h.
final class DefaultsTests: XCTestCase {
    func testRequest() throws {
        var defaults = helium_request()
        helium_request_init(&defaults)
        try GenerationRequest("é\0").withC { request in
            XCTAssertEqual(request.struct_size, defaults.struct_size)
            XCTAssertEqual(request.struct_size, MemoryLayout<helium_request>.size)
            XCTAssertEqual(request.prompt_bytes, 3)
            XCTAssertEqual(request.prompt_mode, defaults.prompt_mode)
            XCTAssertEqual(request.parse_special, defaults.parse_special)
            XCTAssertEqual(request.max_new_tokens, defaults.max_new_tokens)
            XCTAssertEqual(request.temperature, defaults.temperature)
            XCTAssertEqual(request.top_k, defaults.top_k)
            XCTAssertEqual(request.top_p, defaults.top_p)
            XCTAssertEqual(request.min_p, defaults.min_p)
            XCTAssertEqual(request.repetition_penalty, defaults.repetition_penalty)
            XCTAssertEqual(request.has_seed, defaults.has_seed)
            XCTAssertEqual(request.ignore_eos, defaults.ignore_eos)
            XCTAssertEqual(request.stop_count, 0)
            XCTAssertNil(request.prompt_ids)
        }
        try GenerationRequest.more.withC { request in
            XCTAssertNil(request.prompt)
            XCTAssertNil(request.prompt_ids)
            XCTAssertEqual(request.prompt_mode, HELIUM_PROMPT_APPEND)
        }
    }

    func testStopStrings() throws {
        var request = GenerationRequest("")
        request.stop = ["", "é", "ab"]
        try request.withC { request in
            let stop = (0..<request.stop_count).map { String(cString: request.stop[$0]!) }
            XCTAssertEqual(stop, ["", "é", "ab"])
        }
        request.stop = ["a\0b"]
        XCTAssertThrowsError(try request.withC { _ in }) { XCTAssertEqual(($0 as? HeliumError)?.status, .invalidArgument) }
    }

    func testModelOptions() {
        var defaults = helium_model_options()
        helium_model_options_init(&defaults)
        var options = ModelOptions()
        options.withC { options in
            XCTAssertEqual(options.pointee.struct_size, defaults.struct_size)
            XCTAssertEqual(options.pointee.threads, defaults.threads)
            XCTAssertEqual(options.pointee.spin, defaults.spin)
            XCTAssertEqual(options.pointee.context_length, defaults.context_length)
            XCTAssertEqual(options.pointee.kernels, defaults.kernels)
            XCTAssertEqual(options.pointee.check_digests, defaults.check_digests)
            XCTAssertEqual(options.pointee.memory_limit, defaults.memory_limit)
            XCTAssertNil(options.pointee.onnxruntime)
        }
        options.memoryLimit = .available
        options.threads = .max
        options.withC { options in
            XCTAssertEqual(options.pointee.memory_limit, -1)
            XCTAssertEqual(options.pointee.threads, .max)
        }
    }

    func testConversationOptions() {
        var defaults = helium_conversation_options()
        helium_conversation_options_init(&defaults)
        ConversationOptions().withC { options in
            XCTAssertEqual(options.pointee.struct_size, defaults.struct_size)
            XCTAssertEqual(options.pointee.context_length, defaults.context_length)
            XCTAssertEqual(options.pointee.overflow, defaults.overflow)
        }
    }

    func testEveryStatusHasACase() {
        let names = (0..<100).map { String(cString: helium_status_name(helium_status($0))) }.prefix { $0 != "unknown" }
        XCTAssertEqual(names.count, HeliumError.Status.allCases.count + 1)
        XCTAssertEqual(HeliumError(status: .bundle, text: "x").description, "HELIUM_ERROR_BUNDLE: x")
        XCTAssertEqual(HeliumError(status: .internal, text: "x").description, "HELIUM_ERROR_INTERNAL: x")
    }

    func testVersion() {
        XCTAssertEqual(helium_api_version(), 1)
        XCTAssertNotNil(HeliumModel.version.range(of: #"^\d+\.\d+\.\d+$"#, options: .regularExpression), HeliumModel.version)
    }
}
