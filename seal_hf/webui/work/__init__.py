"""What the page does: jobs, sessions, the model's device and runs of the outer loop."""
