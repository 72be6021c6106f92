"""What runs in the sandbox's own processes; started by ``qprobe.rewards.sandbox``.

Imported there as the top-level package ``sandboxed`` by a bare interpreter, so that starting costs
milliseconds: may import the standard library only, and by relative names only.
"""
