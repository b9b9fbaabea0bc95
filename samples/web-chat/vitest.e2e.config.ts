import { relative, resolve } from "node:path";
import { defineConfig } from "vitest/config";

// One machine's cores: file after file.
export default defineConfig({
  test: {
    include: ["e2e/*.test.ts"],
    globalSetup: "e2e/global-setup.ts",
    // docs/targets.md is written from the results, by paths from the repository's root.
    reporters: [
      "default",
      [
        "junit",
        {
          outputFile: "../../out/results/web-chat.xml",
          classnameTemplate: ({ filepath }: { filepath: string }) =>
            relative(resolve(import.meta.dirname, "../.."), filepath),
        },
      ],
    ],
    fileParallelism: false,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
