"""upstream: waits. Takes a Plan through the pool to the provider and hands the answer up, on the loop thread."""
