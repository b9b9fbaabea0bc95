"""Where a bundle runs: the seam (session.py), one row per execution provider (providers.py), and what lies between."""
