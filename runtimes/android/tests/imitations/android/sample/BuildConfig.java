package org.heliumonnx.sample;

public final class BuildConfig {
    private BuildConfig() {}

    public static final String BUNDLE_URL = "";
}
