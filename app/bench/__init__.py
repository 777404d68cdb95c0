"""bench: measures the gateway against the simulator, with a control in the same run; ``penstock bench``.

    cli, *_cli -> latency | streaming | concurrent | storm | overload | sharing | profiles | observed | peers
                    -> servers (simulator, gunicorn, floor, redis-server), client, stream_client, load, procs
                    -> *_figures, figures, bootstrap, verdict -> report, table, page                     pure
               -> counts    the hot path's calls, in this process
               -> suite     several of them in one file
    gates_cli  -> results -> gates, rollout    of files that were written before                         pure
    section    -> the README's performance section of such files                                         pure

Context: a bench that generates its load with a heavy client, starts its servers by hand or drops what failed
flatters whoever runs it. Choice: each command starts everything itself, counts what arrived at the simulator and
not only what the client saw, and ends with exit code 1 when a sample is missing. Price: an HTTP/1.1 client of its
own, since two cores have to carry client, gateway and upstream.
"""
