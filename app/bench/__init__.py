"""bench: measures the gateway against the simulator, with a control in the same run; ``penstock bench``.

    cli -> storm | overload | sharing -> servers (simulator, gunicorn, redis-server), client, load, procs
                                      -> *_figures, figures, verdict -> report, table                       pure

Context: a bench that generates its load with a heavy client, starts its servers by hand or drops what failed
flatters whoever runs it. Choice: each command starts everything itself, counts what arrived at the simulator and
not only what the client saw, and ends with exit code 1 when a sample is missing. Price: an HTTP/1.1 client of its
own, since two cores have to carry client, gateway and upstream.
"""
