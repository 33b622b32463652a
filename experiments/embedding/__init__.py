"""What encodes users: of tables, in parts, nearest ones, and of an export."""
