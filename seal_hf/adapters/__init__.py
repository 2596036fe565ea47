"""LoRA adapters apart from their model: layout, files, and banks of many."""
