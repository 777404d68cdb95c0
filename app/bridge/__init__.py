"""bridge: crosses between WSGI workers (threads, greenlets) and the one background event loop.

    worker                                        native thread
    Bridge.open(make) --post--> inbox --------->  task: await make(crossing)
    crossing.head()   <--wake-- head              crossing.send_head(value)
    crossing.take()   <--wake-- bytes <= 64 KiB   await crossing.send(data)   (waits for credit)
    crossing.close()  --post--> cancel, once      CancelledError inside make

Context: under gevent a second greenlet cannot run a loop of its own, and every lock that gevent has patched
loses wake-ups between native threads. Choice: one loop in a native thread per process, deques across, one
``call_soon_threadsafe`` per batch down and one hub watcher (or one native lock) per wake up. Price: about 65 us
of CPU a crossing, and nothing on the loop thread may log, count or take a patched lock.

Generic: knows neither HTTP nor Penstock's exchanges; imports only ``app.errors``.
"""
