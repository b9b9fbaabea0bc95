package org.heliumonnx

/** `generationRequest { prompt("Once"); maxNewTokens(20) }` */
inline fun generationRequest(configure: GenerationRequest.Builder.() -> Unit): GenerationRequest =
    GenerationRequest.builder().apply(configure).build()

/** `modelOptions { threads(2) }` */
inline fun modelOptions(configure: ModelOptions.Builder.() -> Unit): ModelOptions =
    ModelOptions.builder().apply(configure).build()

/** `model.openConversation().use { ... }` */
fun HeliumModel.openConversation(options: ConversationOptions = ConversationOptions.DEFAULT): HeliumConversation =
    HeliumConversation.open(this, options)
