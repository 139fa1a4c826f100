"""Indices of the records in tar, Parquet and TFRecord files, built once and kept in a cache folder."""
