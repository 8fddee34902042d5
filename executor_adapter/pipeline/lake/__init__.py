"""The lake: tables of Parquet files, in folders that every reader of Parquet reads as they stand."""
