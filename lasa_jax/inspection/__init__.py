"""What looks inside a round: replay, saved rounds, filtering, the paper's bound, (f, kappa), gradient variances."""
