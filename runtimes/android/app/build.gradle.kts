// The sample: one screen over the library.
plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "org.heliumonnx.sample"
    compileSdk = 35

    defaultConfig {
        applicationId = "org.heliumonnx.sample"
        minSdk = 26
        targetSdk = 35
        versionCode = 1
        versionName = "0.1.0"
        buildConfigField("String", "BUNDLE_URL", "\"${providers.gradleProperty("helium.bundleUrl").getOrElse("")}\"")
    }

    buildFeatures {
        buildConfig = true
    }

    packaging {
        jniLibs {
            excludes += "**/libonnxruntime4j_jni.so" // ONNX Runtime's own Java interface, which nobody calls here
        }
    }
}

kotlin {
    jvmToolchain(17)
}

dependencies {
    implementation(project(":helium"))
}
