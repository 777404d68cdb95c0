"""gateway: means. One exchange from plan to record, as bytes and errors; knows neither Flask nor httpx."""
