"""Indices of tar, Parquet and TFRecord files: where each record lies, built once and kept in a cache folder."""
