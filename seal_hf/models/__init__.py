"""Base models: how they are loaded, and what is asked of them."""
