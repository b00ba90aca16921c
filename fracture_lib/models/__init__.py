"""Networks from weights to calibrated probabilities.

Each framework has one module, which alone imports it and is imported only when its models are needed.
"""
