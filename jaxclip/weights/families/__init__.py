"""Published model families: their configs, tensor names and preprocessing, read and written."""
