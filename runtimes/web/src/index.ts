export type { LoadProgress } from "./bundle.js";
export { HeliumError, type ErrorKind } from "./errors.js";
export type { FinishReason, GenerationOptions, GenerationResult, Statistics } from "./generation.js";
export { LanguageModel, load, TextIterator, type BundleFolder, type LoadOptions, type StreamOptions } from "./model.js";
export type { Memory, ModelInfo } from "./protocol.js";
export type { SamplingOptions } from "./sampling.js";
