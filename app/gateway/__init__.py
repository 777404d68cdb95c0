"""gateway: means. One exchange from plan to record, in terms of bytes and errors, knowing neither Flask nor httpx."""
