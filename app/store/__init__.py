"""store: shares. What one worker learns reaches the others of its node and, through Redis, the other nodes."""
