"""wire: frames. What HTTP headers and server-sent events look like as bytes; pure, imports nothing of the house."""
