"""Writers of small fake data in the real on-disk formats."""
