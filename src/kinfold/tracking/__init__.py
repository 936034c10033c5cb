"""Where a run reports to while it runs: a file of its history, and the terminal."""
