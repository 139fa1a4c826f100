"""Data source checks before a run: `python -m jaxclip.data.check`."""
