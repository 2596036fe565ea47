"""The tabs and panels of the page."""
