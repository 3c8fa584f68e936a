"""Deep image anomaly detection with outlier exposure (Ruff et al. 2021): shards, exact plans, DALI, a fast trainer."""

__version__ = "0.1.0"
