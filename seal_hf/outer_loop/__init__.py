"""The outer loop: the policy learns to write better self-edits."""
