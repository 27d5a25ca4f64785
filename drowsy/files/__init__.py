"""What is written and read: files that are whole or not there, and where results come from."""
