"""The benchmark: Fabella and its peers, side by side in one browser. ``python build.py bench`` runs it."""
