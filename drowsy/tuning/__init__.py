"""Every lever of a network at once: what it offers, what it costs, and one knob over all."""
