"""Evaluation protocols without outer training."""
