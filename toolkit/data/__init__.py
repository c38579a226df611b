"""Data sets: their cards, the cache that finds their files, tables, time stamps and batch orders."""
