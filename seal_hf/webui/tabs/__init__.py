"""The page's tabs and panels."""
