"""What is told of the data plane: metrics and the access log. It reads, and changes nothing."""
