"""What runs without anybody looking: notebooks in CI and on schedule, batches, the service, operation."""
