"""What commands return: plain values that turn into JSON."""
