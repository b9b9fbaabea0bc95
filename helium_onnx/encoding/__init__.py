"""Tasks without generation: texts to vectors, labels or entities, batched by length. Runtimes only by their seam."""
