"""Sampling, stopping, streaming text: everything between logits and the user. Knows sessions only through the seam."""
