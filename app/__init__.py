"""Penstock: an Anthropic-native LLM gateway for WSGI stacks.

    web/        speaks     HTTP as WSGI knows it: routes, auth, health, rendering
    gateway/    means      one exchange: plan it, hand it over, watch its body, record it
    bridge/     crosses    between WSGI workers and the one background event loop
    upstream/   waits      dispatch, attempts, slots, pools, transports
    policy/     decides    retry, breaker, credentials (pure, clock passed in)
    providers/  describes  one value per provider
    translate/  rewrites   one dialect onto another
    wire/       frames     SSE, headers, usage
    observe/    records    logs and metrics, read off the Record
    store/      shares     state between workers and nodes
    simulator/  pretends   to be the provider: demo, tests, benches
    bench/      measures   and judges

Six laws: a request walks down once and up once; only ``bridge`` knows both worlds; the data plane's mutable
state lives on the loop thread, which never takes a patched lock; what decides is pure, what waits is in
``upstream``; the async side carries bytes and the sync side knows what they mean; one exchange makes one
frozen ``Record``, off which every log line and metric is read.

Importing this package imports neither ssl nor httpx: gevent has to patch first.
"""
