"""policy: decides. Retries, breakers, credentials, the waiting room: pure, the clock and chance passed in."""
