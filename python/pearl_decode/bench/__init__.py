"""Whole texts, timed: the strategies and other projects' decoders on one pair of models, side by side in one run."""
