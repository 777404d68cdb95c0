"""observe: records. Hooks that read a finished Record; the data plane imports none of them."""
