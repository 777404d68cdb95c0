"""web: speaks. HTTP as WSGI and Flask know it: routes, the client's connection, authentication, rendering."""
