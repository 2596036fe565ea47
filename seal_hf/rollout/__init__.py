"""Propose, train and examine self-edits: the engine under the trainer and the protocols."""
