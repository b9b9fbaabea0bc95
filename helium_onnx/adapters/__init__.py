"""LoRA adapters, as peft saves them: merged into a checkpoint at export, or beside a bundle and chosen per request."""
