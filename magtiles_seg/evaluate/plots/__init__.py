"""An evaluation as curves, charts and pictures."""
