"""Inspects an endless web under a line camera: strips in, each defect once out."""
