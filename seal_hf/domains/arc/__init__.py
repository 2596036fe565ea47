"""Few-shot ARC: a grid puzzle whose demonstrations are turned into training data (SEAL, section 4.1)."""
