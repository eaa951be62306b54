"""What looks inside a round: replay, saved rounds, filtering, the paper's bound, robustness, gradient variances."""
