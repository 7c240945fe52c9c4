"""Recovery: checkpoints on disk and in memory, checksums, anomalies, goodput, and the supervisor of processes."""
