"""wire: frames. HTTP headers and server-sent events as bytes; pure, imports nothing of the house."""
