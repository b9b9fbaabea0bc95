"""The model that an adapter was trained on, as far as an adapter can be held against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helium_onnx.checkpoint import expected_tensors
from helium_onnx.config import HeliumConfig

if TYPE_CHECKING:
    from helium_onnx.bundle import Bundle
    from helium_onnx.checkpoint import Checkpoint


@dataclass(frozen=True)
class Base:
    """What an adapter is held against: the shapes of the base model's weights, by the checkpoint's names.

    ``name`` is for messages; ``tied``: embedding and head are one matrix.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    hidden_size: int
    tied: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Base:
        """A checkpoint, as it is on the disk."""
        shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
        config = checkpoint.config
        return cls(str(checkpoint.folder), shapes, config.hidden_size, config.tie_word_embeddings)

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Base:
        """The checkpoint that a bundle was exported from."""
        config = HeliumConfig.from_dict(bundle.model_config, source=f"{bundle.path}/helium.json")
        return cls(str(bundle.path), expected_tensors(config), config.hidden_size, config.tie_word_embeddings)
