"""What every step uses: its context, artifacts, journal, loops, training, networks, memory."""
