"""The console command `seal`."""

from .command_line import main


__all__ = ["main"]
