"""What runs a drowsy layer. No backend imports another."""
