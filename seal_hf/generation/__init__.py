"""Text generation with an adapter per prompt."""
