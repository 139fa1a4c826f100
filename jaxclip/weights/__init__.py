"""Public weights in and out: the files, the layouts of each family, and the way between them and jaxclip."""
