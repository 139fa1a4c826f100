"""Import and export of public weights: file formats, model families, and conversion to jaxclip's arrays."""
