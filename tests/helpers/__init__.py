"""What many tests share: tiny models, small runs, a Hub of the tests' own."""
