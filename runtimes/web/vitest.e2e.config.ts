import { defineConfig } from "vitest/config";

// One machine's cores: file after file.
export default defineConfig({
  test: {
    include: ["e2e/*.test.ts"],
    globalSetup: "e2e/global-setup.ts",
    fileParallelism: false,
    testTimeout: 120_000,
  },
});
