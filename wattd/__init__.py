"""wattd: what every phase of a training job costs in joules, on every node.

The daemon's own modules are private; the wire contract is `wattd.v1`.
"""

__version__ = "0.1.0"
