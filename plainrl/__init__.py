"""What the scripts of this repository share. Each file can be read, and copied, by itself."""
