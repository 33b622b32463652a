"""The item table: rows of a batch, rows over devices, and their Adam."""
