"""The page: its tabs, what answers programs, and the figures of how good the models are."""
