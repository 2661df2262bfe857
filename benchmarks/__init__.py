"""What the pool costs, in ratios against named references; README.md says how to run and read it."""
