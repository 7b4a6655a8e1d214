"""HTTP: one module for each API. They translate requests for the rooms below and answers back; they decide nothing."""
