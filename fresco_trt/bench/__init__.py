"""Speed and quality side by side; stored figures go to the repository's bench/results/."""
