"""How fast a bundle runs on this machine, and how far that is from what the machine could do."""
