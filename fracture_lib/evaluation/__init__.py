"""Measure models: metrics, calibration, robustness, the ensemble and the out-of-distribution detector."""
