"""The inner loop: self-edits into trained LoRA adapters."""
