"""A network that sleeps: its layers, its knob, the corrections in force."""
