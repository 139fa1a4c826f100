"""The check of a data source before a run: `python -m jaxclip.data.check`."""
