"""Knowledge incorporation: learn a passage, answer questions about it."""
