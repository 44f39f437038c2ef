"""What commands return: plain values that can be written as JSON."""
