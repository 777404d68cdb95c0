"""providers: describes. One frozen ``Provider`` value per upstream kind, and the table of them."""
