"""Worked examples of fine-tuning: each makes its own data and measures a model on what it was not shown.

What the scripts write is free for any use (CC0 1.0): its words and its stories come from here, or from the story model.
"""
