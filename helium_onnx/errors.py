"""Every error that a user can cause, in one tree.

    HeliumOnnxError                 exit code 1
    ├── CheckpointError             a checkpoint cannot be read
    │   ├── CheckpointNotFoundError     no such folder, no such Hub repository, no network
    │   ├── ConfigError                 config.json is missing, malformed or describes no Helium
    │   └── WeightsError                a shard or a tensor is missing, truncated, mis-shaped or not finite
    ├── AdapterError                a LoRA adapter cannot be read, or is another model's
    ├── TokenizerError              tokenizer.json is missing, malformed or does not fit the vocabulary
    ├── RecipeError                 a recipe is unknown or malformed
    ├── ExportError                 the bundle cannot be written
    │   ├── TargetExistsError           the target is there already
    │   ├── TargetLockedError           another export is writing it
    │   └── ResourceError               too little disk or memory
    ├── BundleError                 a bundle cannot be read
    │   ├── FormatVersionError          written by a newer helium-onnx
    │   └── IntegrityError              a file is missing, changed or not what the manifest says
    ├── ProviderError               an execution provider cannot run the bundle
    ├── GenerationError             a request cannot be served
    │   ├── PromptError                 the prompt is not text that can be tokenized
    │   └── ContextOverflowError        prompt and new tokens do not fit the context
    ├── SavedSessionError           the file of a saved session cannot be used or written
    ├── TextError                   a file of texts cannot be used
    ├── BatchError                  a batch job cannot begin or go on
    ├── MissingDependencyError      an extra is not installed
    └── UsageError                  exit code 2: an option has a value that it cannot have

An error says what was found, what was expected and the remedy. ``assert`` is for our own mistakes only.
"""

from __future__ import annotations

__all__ = [
    "AdapterError",
    "BatchError",
    "BundleError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ConfigError",
    "ContextOverflowError",
    "ExportError",
    "FormatVersionError",
    "GenerationError",
    "HeliumOnnxError",
    "IntegrityError",
    "MissingDependencyError",
    "PromptError",
    "ProviderError",
    "RecipeError",
    "ResourceError",
    "SavedSessionError",
    "TargetExistsError",
    "TargetLockedError",
    "TextError",
    "TokenizerError",
    "UsageError",
    "WeightsError",
]


class HeliumOnnxError(Exception):
    """Base of the tree.

    ``what`` is one sentence in the field's words; ``found``, ``expected`` and ``remedy`` complete it. ``str(error)``
    is the whole text, one line for each part that was given.
    """

    exit_code = 1

    def __init__(self, what: str, *, found: object = None, expected: object = None, remedy: str | None = None) -> None:
        self.what = what
        self.found = None if found is None else str(found)
        self.expected = None if expected is None else str(expected)
        self.remedy = remedy
        super().__init__(self._text())

    def _text(self) -> str:
        parts = [("found:   ", self.found), ("expected:", self.expected), ("remedy:  ", self.remedy)]
        return "\n".join([self.what, *(f"  {label} {text}" for label, text in parts if text is not None)])


class CheckpointError(HeliumOnnxError):
    """A checkpoint cannot be read."""


class CheckpointNotFoundError(CheckpointError):
    """No such folder, no such Hub repository, or no network to reach it."""


class ConfigError(CheckpointError):
    """config.json is missing, malformed or describes no Helium."""


class WeightsError(CheckpointError):
    """A shard or a tensor is missing, truncated, mis-shaped or not finite."""


class AdapterError(HeliumOnnxError):
    """A LoRA adapter cannot be read, or is another model's."""


class TokenizerError(HeliumOnnxError):
    """tokenizer.json is missing, malformed or does not fit the vocabulary."""


class RecipeError(HeliumOnnxError):
    """A recipe is unknown or malformed."""


class ExportError(HeliumOnnxError):
    """The bundle cannot be written."""


class TargetExistsError(ExportError):
    """The target is there already."""


class TargetLockedError(ExportError):
    """Another export is writing the same target."""


class ResourceError(ExportError):
    """Too little disk or memory."""


class BundleError(HeliumOnnxError):
    """A bundle cannot be read."""


class FormatVersionError(BundleError):
    """The bundle was written by a newer helium-onnx."""


class IntegrityError(BundleError):
    """A file of the bundle is missing, changed or not what the manifest says."""


class ProviderError(HeliumOnnxError):
    """An execution provider cannot run the bundle."""


class GenerationError(HeliumOnnxError):
    """A request cannot be served."""


class PromptError(GenerationError):
    """The prompt is not text that can be tokenized."""


class ContextOverflowError(GenerationError):
    """Prompt and new tokens do not fit the context."""


class SavedSessionError(HeliumOnnxError):
    """The file of a saved session cannot be used or written."""


class TextError(HeliumOnnxError):
    """A file of texts, to measure on, to calibrate with or to work through, cannot be used."""


class BatchError(HeliumOnnxError):
    """A batch job cannot begin or go on."""


class MissingDependencyError(HeliumOnnxError):
    """An optional part of helium-onnx is not installed."""


class UsageError(HeliumOnnxError):
    """An option has a value that it cannot have."""

    exit_code = 2
