// The AAR: org.heliumonnx in Java and Kotlin, libhelium_onnx_jni.so and libhelium_onnx.so.
plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

// For the build with Qualcomm's execution provider, name com.microsoft.onnxruntime:onnxruntime-android-qnn in its
// place: it too has libonnxruntime.so and headers/. libhelium_onnx computes on the CPU with either.
val onnxruntime = "com.microsoft.onnxruntime:onnxruntime-android:1.31.1"

// The C header lies in the AAR's folder headers/, which Gradle does not put on any path by itself.
val onnxruntimeAar: Configuration by configurations.creating { isTransitive = false }
val onnxruntimeFiles = layout.buildDirectory.dir("onnxruntime")
val extractHeaders by tasks.registering(Sync::class) {
    from(provider { zipTree(onnxruntimeAar.singleFile) }) { include("headers/**") }
    into(onnxruntimeFiles)
}
tasks.configureEach {
    if (name.startsWith("configureCMake")) dependsOn(extractHeaders)
}

dependencies {
    onnxruntimeAar("$onnxruntime@aar")
    // Its libonnxruntime.so comes into the app's folder of libraries, where dlopen("libonnxruntime.so") finds it.
    runtimeOnly(onnxruntime)
    // For generateFlow alone: who collects a Flow has it already.
    compileOnly("org.jetbrains.kotlinx:kotlinx-coroutines-core:1.8.1")
}

android {
    namespace = "org.heliumonnx"
    compileSdk = 35
    ndkVersion = "27.0.12077973"

    defaultConfig {
        minSdk = 26
        consumerProguardFiles("consumer-rules.pro")
        ndk {
            abiFilters += listOf("arm64-v8a", "x86_64")
        }
        externalNativeBuild {
            cmake {
                arguments += listOf(
                    "-DHELIUM_ONNXRUNTIME_INCLUDE_DIR=${onnxruntimeFiles.get().asFile}/headers",
                    // No C++ object crosses between the libraries, so each may have its own C++ runtime.
                    "-DANDROID_STL=c++_static",
                    // Pages of 16 KB for every processor: the default from NDK 28 on.
                    "-DANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON"
                )
            }
        }
    }

    externalNativeBuild {
        cmake {
            path = file("src/main/cpp/CMakeLists.txt")
            version = "3.22.1"
        }
    }
}

kotlin {
    jvmToolchain(17)
}
